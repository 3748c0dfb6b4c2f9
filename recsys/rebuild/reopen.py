"""The other process of the gate `reopen`: opens a folder as any server would and prints lists as JSON.

Called as `python -m recsys.rebuild.reopen FOLDER K` with a JSON list of user ids on stdin.
"""

import json
import sys
from dataclasses import replace


def main(folder: str, k: int) -> int:
    """Print one JSON object, user id to item ids."""
    from recsys.recommender import Recommender

    users = json.load(sys.stdin)
    recommender = Recommender.load(folder, device="cpu")
    recommender.config = replace(recommender.config, progress=False)
    lists = recommender.recommend(users, k)
    found = {str(user): lists.filter(lists["user_id"] == user)["item_id"].to_list() for user in users}
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
