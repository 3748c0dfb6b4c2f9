"""A generated catalogue in which the next item of each user is known: for tests, demos and smoke runs.

Each topic has its own words and a fixed cyclic order of its items. A user has one or two topics and walks through
them in that order, two topics taking turns. So the next item is determined, and whoever has learned the order must
find it. Owns the generation and nothing else.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import product

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.errors import InvalidConfig

START = datetime(2024, 1, 1, tzinfo=UTC)
DAYS = 100
NOISE = 0.05
"""The share of steps before which a user strays to an item of a topic that is not his."""

TOPICS: dict[str, tuple[str, str]] = {
    "kitchen": (
        "cast-iron nonstick stainless ceramic copper enamelled bamboo glass",
        "skillet saucepan kettle colander whisk ladle casserole teapot",
    ),
    "camping": (
        "waterproof ultralight insulated foldable windproof alpine inflatable rugged",
        "tent hammock lantern rucksack tarpaulin stove mattress compass",
    ),
    "music": (
        "acoustic electric vintage bluegrass baroque mahogany twelve-string concert",
        "guitar violin mandolin trumpet cello banjo clarinet ukulele",
    ),
    "gardening": (
        "galvanised hardwood ergonomic telescopic terracotta rotating self-watering pruning",
        "trowel wheelbarrow planter secateurs hosepipe trellis sprinkler rake",
    ),
    "astronomy": (
        "refracting Newtonian equatorial motorised wide-field achromatic lunar computerised",
        "telescope eyepiece binoculars mount finderscope filter planisphere spectroscope",
    ),
    "baking": (
        "sourdough buttery gluten-free cinnamon almond rye lemon chocolate",
        "loaf croissant brownie muffin scone biscuit tartlet cupcake",
    ),
    "cycling": (
        "carbon tubeless aerodynamic hydraulic commuter gravel reflective titanium",
        "handlebar saddle derailleur helmet pannier crankset pedal wheelset",
    ),
    "painting": (
        "watercolour acrylic gouache charcoal pastel sable linen metallic",
        "easel palette brush canvas sketchbook varnish pigment crayon",
    ),
    "aquarium": (
        "tropical saltwater submersible planted freshwater coral automatic biological",
        "tank heater gravel pump feeder skimmer driftwood thermometer",
    ),
    "fencing": (
        "electric-foil padded left-handed Olympic maraging breathable junior sabre",
        "lame mask gauntlet plastron breeches scabbard pommel bodycord",
    ),
    "chess": (
        "weighted rosewood magnetic tournament boxwood digital folding Staunton",
        "chessboard clock bishop knight scoresheet endgame opening problem-book",
    ),
    "sewing": (
        "pinking cotton velvet embroidered silk denim quilted overlock",
        "scissors thread bobbin thimble ribbon zipper needle pincushion",
    ),
}
"""Topic to its adjectives and its nouns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Synthetic:
    """A generated data set.

    Attributes:
        interactions: `user_id`, `item_id`, `timestamp` (within 100 days from 2024-01-01), `event` ("view").
        items: `item_id`, `title`, `description`, `categories` ([topic]), `price`, `created_at`.
        users: `user_id`, `favourite_topic`.
        truth: `user_id`, `item_id`: the item that comes next. It is warm, and the user has not had it yet.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame
    users: pl.DataFrame
    truth: pl.DataFrame


def generate(
    *,
    n_users: int = 200,
    n_items: int = 300,
    n_topics: int = 10,
    events_per_user: int = 20,
    n_cold_items: int = 10,
    seed: int = 0,
) -> Synthetic:
    """Generates a data set; the same arguments give the same one.

    Args:
        n_users: users, each with `events_per_user` interactions.
        n_items: items of the catalogue, cold ones included, spread evenly over the topics.
        n_topics: topics, each with words of its own.
        events_per_user: interactions of a user; fewer than the warm items of a topic, so that no walk comes round.
        n_cold_items: items without any interaction, created on the last day.
        seed: of all random choices.

    Raises:
        InvalidConfig: a number is out of its range.
    """
    _check(n_users, n_items, n_topics, events_per_user, n_cold_items)
    rng = np.random.default_rng(seed)
    topic_of = np.arange(n_items) % n_topics
    n_warm = n_items - n_cold_items
    # A random order within the topic, so that no number in an id or a title gives the next item away.
    walks = [rng.permutation(np.flatnonzero(topic_of[:n_warm] == topic)) for topic in range(n_topics)]
    items = _items(rng, topic_of, n_warm)
    favourites, rows, next_rows = [], [], []
    for _ in range(n_users):
        topics = rng.permutation(n_topics)[: rng.integers(1, 3)]
        path = _path(rng, walks, topics, events_per_user)
        favourites.append(list(TOPICS)[topics[0]])
        rows.append(path[:-1])
        next_rows.append(path[-1])
    user_ids = pl.Series("user_id", [f"u{user:05d}" for user in range(n_users)])
    return Synthetic(
        interactions=_interactions(rng, user_ids, items["item_id"], np.array(rows)),
        items=items,
        users=pl.DataFrame([user_ids, pl.Series("favourite_topic", favourites)]),
        truth=pl.DataFrame([user_ids, items["item_id"].gather(next_rows)]),
    )


def _check(n_users: int, n_items: int, n_topics: int, events_per_user: int, n_cold_items: int) -> None:
    if n_users < 1 or events_per_user < 1 or n_cold_items < 0:
        raise InvalidConfig(
            "n_users and events_per_user must be at least 1 and n_cold_items at least 0, "
            f"not {n_users}, {events_per_user} and {n_cold_items}."
        )
    if not 1 <= n_topics <= len(TOPICS):
        raise InvalidConfig(f"n_topics must be 1 to {len(TOPICS)}, not {n_topics}.")
    smallest = (n_items - n_cold_items) // n_topics
    if smallest <= events_per_user:
        raise InvalidConfig(
            f"{n_items} items, {n_cold_items} of them cold, in {n_topics} topics leave {smallest} warm items in a "
            f"topic; there must be more than events_per_user ({events_per_user}), or walks would come round."
        )


def _items(rng: np.random.Generator, topic_of: npt.NDArray[np.int64], n_warm: int) -> pl.DataFrame:
    names, n_items = list(TOPICS), len(topic_of)
    titles = {topic: _titles(rng, names[topic], int((topic_of == topic).sum())) for topic in np.unique(topic_of)}
    topics = [names[topic] for topic in topic_of]
    created = [START - timedelta(days=int(day)) for day in rng.integers(1, 365, n_warm)]
    created += [START + timedelta(days=DAYS - 1)] * (n_items - n_warm)
    return pl.DataFrame(
        {
            "item_id": [f"i{item:05d}" for item in range(n_items)],
            "title": [titles[topic].pop() for topic in topic_of],
            "description": [f"For everybody who loves {topic}." for topic in topics],
            "categories": [[topic] for topic in topics],
            "price": rng.integers(199, 19_900, n_items) / 100,
            "created_at": created,
        }
    )


def _titles(rng: np.random.Generator, topic: str, count: int) -> list[str]:
    """Distinct titles of a topic: adjective and noun, then a series number once the pairs are used up."""
    adjectives, nouns = (words.split() for words in TOPICS[topic])
    pairs = [f"{adjective} {noun}" for adjective, noun in product(adjectives, nouns)]
    order = rng.permutation(len(pairs))
    return [
        pairs[order[number % len(pairs)]] + (f" series {number // len(pairs) + 1}" if number >= len(pairs) else "")
        for number in range(count)
    ]


def _path(
    rng: np.random.Generator,
    walks: list[npt.NDArray[np.int64]],
    topics: npt.NDArray[np.int64],
    n_events: int,
) -> list[int]:
    """Item rows of one user: `n_events` of them, then the one that comes next."""
    strange = [topic for topic in range(len(walks)) if topic not in topics]
    places = {topic: int(rng.integers(len(walks[topic]))) for topic in topics}
    path: list[int] = []
    turn = 0
    while len(path) < n_events + 1:
        # The last event is never a stray one: it is what the next item follows.
        if strange and len(path) < n_events - 1 and rng.random() < NOISE:
            path.append(int(rng.choice(walks[rng.choice(strange)])))
            continue
        topic = topics[turn % len(topics)]
        path.append(int(walks[topic][places[topic] % len(walks[topic])]))
        places[topic] += 1
        turn += 1
    return path


def _interactions(
    rng: np.random.Generator, user_ids: pl.Series, item_ids: pl.Series, rows: npt.NDArray[np.int64]
) -> pl.DataFrame:
    n_users, n_events = rows.shape  # rows: (n_users, n_events), item rows in the order of time
    seconds = [np.sort(rng.choice(DAYS * 86_400, n_events, replace=False)) for _ in range(n_users)]
    times = int(START.timestamp()) + np.concatenate(seconds)
    return pl.DataFrame(
        [
            user_ids.gather(np.repeat(np.arange(n_users), n_events)),
            item_ids.gather(rows.ravel()),
            pl.from_epoch(pl.Series("timestamp", times)).dt.cast_time_unit("us").dt.replace_time_zone("UTC"),
            pl.repeat("view", rows.size, eager=True).alias("event"),
        ]
    ).sort("timestamp", "user_id")
