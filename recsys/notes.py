"""What was decided on the way, for the caller to read."""

import logging

log = logging.getLogger("recsys")


class Notes:
    """Sentences about what was decided, logged as they come."""

    def __init__(self, sentences: tuple[str, ...]) -> None:
        self.sentences = list(sentences)

    def add(self, sentence: str, *, level: int = logging.INFO) -> None:
        """Keep and log one sentence."""
        self.sentences.append(sentence)
        log.log(level, sentence)
