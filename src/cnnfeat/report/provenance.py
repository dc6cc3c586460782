"""What was run and from what, in words."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cnnfeat.report.evidence import Evidence

_ATTRIBUTES = {
    "source": "Images",
    "source_kind": "Kind of source",
    "source_fingerprint": "Fingerprint of the images",
    "source_fingerprint_method": "Fingerprint taken of",
    "network": "Network",
    "network_format": "Network's format",
    "network_sha256": "Network's SHA-256",
    "network_source": "Network trained on",
    "precision": "Computed in",
    "cnnfeat": "cnnfeat",
    "tensorflow": "TensorFlow",
    "h5py": "h5py",
    "created": "Features made",
}


def provenance(evidence: Evidence) -> list[tuple[str, str]]:
    """List what is known: (name, value)."""
    attributes = evidence.file.attributes
    facts = [
        (name, str(attributes[key]))
        for key, name in _ATTRIBUTES.items()
        if attributes.get(key) not in (None, "")
    ]
    facts += _preprocessing(str(attributes.get("preprocessing") or "{}"))
    counts = [
        f"{split} {evidence.file.n_rows(split):,}"
        + (f" ({len(skipped):,} left out)" if (skipped := evidence.file.skipped(split)) else "")
        for split in evidence.file.splits
    ]
    facts.append(("Rows", ", ".join(counts)))
    if evidence.card:
        card = evidence.card
        facts.append(
            (
                "Training",
                f"{len(card.history)} epochs on {card.n_train:,} images, {card.n_validation:,} "
                f"held back; {card.elapsed_s:.0f} s",
            )
        )
    if evidence.svm:
        facts += _svm_facts(evidence)
    return facts


def _preprocessing(text: str) -> list[tuple[str, str]]:
    try:
        done = json.loads(text)
    except ValueError:
        return [("Preprocessing", text)]
    if not isinstance(done, dict) or not done:
        return []
    said = ", ".join(f"{key} {value}" for key, value in done.items() if value is not None)
    return [("Preprocessing", said)]


def _svm_facts(evidence: Evidence) -> list[tuple[str, str]]:
    svm = evidence.svm
    if svm is None:
        return []
    facts = [("SVM", f"{svm.kernel}, {svm.n_train:,} training rows, {svm.n_test:,} test rows")]
    settings = {
        "C": svm.best.C,
        "gamma": svm.best.gamma,
        "Scaling": svm.normalize,
        "PCA": svm.pca,
    }
    for name, value in settings.items():
        if value is not None:
            facts.append(
                (f"SVM: {name}", f"{value:.6g}" if isinstance(value, float) else str(value))
            )
    if svm.best.elapsed_s is not None:
        facts.append(("SVM: time", f"{svm.best.elapsed_s:.1f} s"))
    return facts
