"""What an analyst's SQL may do, and how it is rendered for each of the two stores."""

from typing import Literal

Store = Literal["mysql", "hive"]
"""Which store answers a statement: recent data or the archive."""
StoreChoice = Literal["auto", "mysql", "hive"]
"""What a caller may ask for; auto takes MySQL when every table is there, else Hive."""
