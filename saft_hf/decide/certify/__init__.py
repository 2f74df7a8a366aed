"""What fresh labels say about the rows that are kept: certificates, bounds, harmful shares."""

from saft_hf.decide.certify.certificate import Certificate
from saft_hf.decide.certify.fresh import FreshLabels
from saft_hf.decide.certify.shares import clopper_pearson
from saft_hf.decide.certify.statements import RowsInUse

__all__ = ["Certificate", "FreshLabels", "RowsInUse", "clopper_pearson"]
