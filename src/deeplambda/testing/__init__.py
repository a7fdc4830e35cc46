"""What an application's own tests import: the contract as a check, and stand-ins for broker and object store."""

from deeplambda.testing.checker import check_application
from deeplambda.testing.fakes import FakeBroker, FakeStore, Record
from deeplambda.testing.findings import Finding, Report

__all__ = ["FakeBroker", "FakeStore", "Finding", "Record", "Report", "check_application"]
