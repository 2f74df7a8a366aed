"""Tokens to hidden states: planned batches, first layers only, on any number of processes, kept on disk."""

from saft_hf.embed.extract import Embedded, Extractor, where_finite
from saft_hf.embed.extract import Work as RowFunction
from saft_hf.embed.features import Features, layers_of, readouts_of
from saft_hf.embed.plan import KEY_BYTES, find_keys
from saft_hf.embed.reduce import gram_on, tree_reduce
from saft_hf.embed.rows import RowReader
from saft_hf.embed.rows_digest import rows_digest
from saft_hf.embed.source import ALGORITHM, ModelSource
from saft_hf.embed.store import Vectors, default_cache_dir, name_of
from saft_hf.embed.survey import Survey, survey_dataset
