"""Feature files in other programs' formats, written block by block."""

from cnnfeat.export.dispatch import FORMATS, ExportResult, export_features

__all__ = ["FORMATS", "ExportResult", "export_features"]
