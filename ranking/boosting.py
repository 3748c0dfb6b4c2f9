"""One training by LightGBM: how many trees, when to stop, and how far it is. The settings are the caller's."""

from typing import Any

from tqdm import tqdm


def grow(
    settings: dict[str, Any],
    learnt: Any,
    n_trees: int,
    *,
    validation: Any = None,
    early_stopping: int,
    name: str,
    progress: bool,
) -> Any:
    """A LightGBM booster.

    Args:
        settings: what LightGBM calls parameters.
        learnt: `lightgbm.Dataset` to learn from.
        n_trees: at most.
        validation: the same to stop early by; without it all trees are grown.
        early_stopping: trees without a better validation after which it stops.
        name: of the bar.
        progress: whether stderr shows it.
    """
    import lightgbm as lgb

    with tqdm(total=n_trees, desc=name, unit=" trees", disable=not progress, mininterval=1.0) as bar:
        callbacks: list[Any] = [lambda _: bar.update()]
        if validation is not None:
            callbacks.append(lgb.early_stopping(early_stopping, verbose=False))
        return lgb.train(
            settings, learnt, n_trees, valid_sets=[] if validation is None else [validation], callbacks=callbacks
        )
