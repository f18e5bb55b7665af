"""The nouns that the word tasks are about, and how to write them.

Common, concrete, countable single-word nouns. Each belongs to exactly one category; words with a
second common meaning in another category (crane, bat, chicken, kiwi, tank) are left out.
"""

from __future__ import annotations

from instructrec.envs.tasks.partition import split_words


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


CATEGORIES: dict[str, tuple[str, ...]] = {
    "animal": _words(
        """
        alligator ant antelope bear beaver bee bison buffalo butterfly camel cat cheetah
        cow coyote crocodile deer dog dolphin donkey eagle elephant fox frog giraffe
        goat gorilla hamster hawk hedgehog hippo horse kangaroo kitten koala leopard
        lion lizard monkey mosquito mouse octopus otter owl panda panther parrot penguin
        pig puppy rabbit raccoon rat rhino shark sheep snake spider squirrel tiger
        tortoise turtle walrus wasp whale wolf zebra
        """
    ),
    "food": _words(
        """
        almond apple apricot avocado bagel banana bean biscuit blueberry brownie burger
        cabbage cake candy carrot cashew cherry coconut cookie cracker cucumber cupcake
        donut dumpling eggplant grape hamburger lemon lentil lettuce mango meatball
        melon muffin mushroom noodle olive onion pancake papaya pastry pea peach peanut
        pear pickle pie pineapple pizza plum potato pretzel pudding pumpkin radish
        raisin raspberry sandwich sausage steak strawberry taco tomato turnip waffle
        walnut
        """
    ),
    "tool": _words(
        """
        axe broom brush bucket chainsaw chisel clamp compass corkscrew crowbar drill
        dustpan flashlight fork funnel grater grinder hacksaw hammer handsaw hatchet hoe
        hose jackhammer knife ladder ladle lathe lever machete mallet microscope mop
        needle paintbrush peeler pencil pickaxe pitchfork plow plunger pulley rake
        ratchet razor saw scalpel scraper screwdriver scythe shovel sickle sieve
        sledgehammer spade spanner spatula sponge spoon stapler telescope thermometer
        toothbrush tripod whisk wrench
        """
    ),
    "place": _words(
        """
        airport apartment aquarium arena bakery barn basement bathroom bedroom brewery
        cabin cafe casino castle cathedral cave chapel church cinema city classroom
        clinic college cottage desert factory farm forest garage garden gym harbor
        hospital hotel island kitchen laboratory lake library lighthouse mall mansion
        market meadow monastery mosque mountain museum office palace park pharmacy
        prison restaurant school shop stadium store temple theater town university
        valley village warehouse zoo
        """
    ),
    "vehicle": _words(
        """
        airplane ambulance barge battleship bicycle bike biplane boat bulldozer bus cab
        camper canoe car carriage cart chariot convertible ferry firetruck forklift
        glider hatchback hearse helicopter hovercraft jeep jet kayak lifeboat limousine
        locomotive lorry minibus minivan moped motorbike motorboat motorcycle raft
        rocket rowboat sailboat scooter sedan ship skateboard sled sleigh snowmobile
        spaceship speedboat steamboat submarine taxi tractor train tram tricycle truck
        tugboat unicycle van wagon warship yacht
        """
    ),
    "job": _words(
        """
        accountant actor architect astronaut author baker banker barber blacksmith
        bricklayer butcher carpenter cashier chef clerk comedian dancer dentist
        detective doctor editor electrician engineer farmer firefighter fisherman
        florist gardener grocer janitor journalist lawyer librarian magician manager
        mechanic miner musician nanny nurse optician painter pharmacist photographer
        physicist pianist pilot plumber poet policeman politician professor programmer
        reporter sailor scientist secretary shepherd singer soldier surgeon tailor
        teacher waiter welder writer
        """
    ),
}
"""Category -> its nouns."""

_CONSONANT_SOUND = frozenset({"unicycle", "university"})


def with_article(word: str) -> str:
    """Returns ``"a whale"``, ``"an axe"``, ``"a university"``."""
    vowel = word[0] in "aeiou" and word not in _CONSONANT_SOUND
    return f"{'an' if vowel else 'a'} {word}"


_SHORT = 7
_SPLITS = {category: split_words(words) for category, words in CATEGORIES.items()}


def words_of(category: str, split: str, *, short: bool = False) -> tuple[str, ...]:
    """Returns the nouns of a category that belong to a split, in a fixed order.

    Args:
        category: Key of ``CATEGORIES``.
        split: Name of the split.
        short: Only those of at most seven letters: everyday words that are easy to copy.
    """
    words = _SPLITS[category][split]
    return tuple(word for word in words if not short or len(word) <= _SHORT)


def words_in(split: str, *, short: bool = False) -> tuple[tuple[str, str], ...]:
    """Returns every ``(word, category)`` of a split, in a fixed order; see ``words_of``."""
    return tuple(
        (word, category)
        for category in CATEGORIES
        for word in words_of(category, split, short=short)
    )
