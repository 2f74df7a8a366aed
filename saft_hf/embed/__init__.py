"""Tokens to hidden states: planned batches, first layers only, on any number of processes, kept on disk.

`ModelSource` is a model to read, `Features` what to read of it; `source.extractor(...)` makes an `Extractor`, whose
`embed(dataset)` gives an `Embedded`: vectors on disk, and what every process may ask of them.
"""

from __future__ import annotations

from saft_hf.embed.architecture import describe_model
from saft_hf.embed.extract import Embedded, Extractor, RowFunction, finite_rows, where_finite
from saft_hf.embed.features import Features, feature_name, layers_of, readouts_of
from saft_hf.embed.loading import all_weights_on_every_rank, rng_untouched
from saft_hf.embed.plan import KEY_BYTES, find_keys
from saft_hf.embed.reduce import tree_reduce
from saft_hf.embed.rows import RowReader
from saft_hf.embed.rows_digest import content_of, rows_digest
from saft_hf.embed.source import ALGORITHM, ModelSource, model_name, tokenizer_of
from saft_hf.embed.store import Vectors, default_cache_dir, name_of
from saft_hf.embed.survey import Survey, survey_dataset

__all__ = [
    "ALGORITHM",
    "KEY_BYTES",
    "Embedded",
    "Extractor",
    "Features",
    "ModelSource",
    "RowFunction",
    "RowReader",
    "Survey",
    "Vectors",
    "all_weights_on_every_rank",
    "content_of",
    "default_cache_dir",
    "describe_model",
    "feature_name",
    "find_keys",
    "finite_rows",
    "layers_of",
    "model_name",
    "name_of",
    "readouts_of",
    "rng_untouched",
    "rows_digest",
    "survey_dataset",
    "tokenizer_of",
    "tree_reduce",
    "where_finite",
]
