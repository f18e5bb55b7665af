"""Names of people and cities, dealt out to the splits once and for all."""

from __future__ import annotations

from instructrec.envs.tasks.partition import split_words


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PEOPLE = _names(
    """
    Ada Agnes Albert Alice Amir Anna Anton Bella Boris Bruno Carla Carlos Clara Daniel David
    Diana Elena Elias Emma Erik Eva Felix Fiona Frida George Greta Hana Hassan Helen Henry Ida
    Igor Irene Ivan Jack Jana Julia Karim Kate Kenji Laura Leo Lucy Maria Martin Maya Mina
    Nadia Nina Noah Olga Omar Oscar Paul Petra Rosa Ruth Samir Sara Simon Sofia Sven Tanja
    Thomas Tina Vera Victor Walter Yuki Zoe
    """
)
"""First names of a single word."""

CITIES = _names(
    """
    Accra Amman Ankara Athens Baghdad Bangkok Beijing Bergen Berlin Bogota Boston Brussels
    Budapest Cairo Calgary Chicago Dakar Dallas Delhi Denver Dublin Durban Geneva Glasgow
    Hamburg Hanoi Havana Helsinki Houston Istanbul Jakarta Kabul Karachi Kyoto Lagos Lima
    Lisbon London Lyon Madrid Manila Melbourne Miami Milan Montreal Moscow Mumbai Munich
    Nairobi Naples Osaka Oslo Ottawa Paris Perth Prague Quito Riga Rome Santiago Seoul Seville
    Stockholm Sydney Tallinn Tehran Tokyo Toronto Tunis Turin Vienna Vilnius Warsaw Zurich
    """
)
"""Cities of a single word that are no first names."""

_PEOPLE, _CITIES = split_words(PEOPLE), split_words(CITIES)


def people_of(split: str, without: str = "") -> list[str]:
    """Returns the first names of a split, less one of them."""
    return [name for name in _PEOPLE[split] if name != without]


def cities_of(split: str) -> list[str]:
    """Returns the cities of a split."""
    return list(_CITIES[split])
