"""The language of a text as IFEval tells it: by langdetect, for constraints on the language."""

from __future__ import annotations

from instructrec.errors import ConfigError


def detected_language(text: str) -> str | None:
    """Returns the code of the most probable language of a text; None where there is none to tell.

    Raises:
        ConfigError: When langdetect is not installed.
    """
    try:
        import langdetect
    except ImportError as error:
        raise ConfigError(
            "constraints on the language of a response need the package langdetect: "
            "pip install 'instructrec[ifeval]'."
        ) from error
    langdetect.detector_factory.init_factory()
    detector = langdetect.detector_factory._factory.create()
    detector.seed = 0  # langdetect draws at random; unseeded, one text can get two answers
    detector.append(text)
    try:
        return str(detector.detect())
    except langdetect.LangDetectException:
        return None
