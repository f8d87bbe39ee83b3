from __future__ import annotations

import botocore.session
import pytest

from endpoint.aws.instance_types import GIB, find_instance_type, has_gpus

KNOWN_BY_SAGEMAKER: list[str] = (
    botocore.session.Session().get_service_model("sagemaker").shape_for("ProductionVariantInstanceType").enum
)


@pytest.mark.parametrize(
    ("name", "vcpus", "gib"),
    [
        ("ml.t2.medium", 2, 4),
        ("ml.m5.large", 2, 8),
        ("ml.m5.24xlarge", 96, 384),
        ("ml.m4.10xlarge", 40, 160),
        ("ml.c5.9xlarge", 36, 72),
        ("ml.r7gd.medium", 1, 8),
        ("ml.g4dn.xlarge", 4, 16),
        ("ml.g5.48xlarge", 192, 768),
        ("ml.g6e.2xlarge", 8, 64),
        ("ml.p3.2xlarge", 8, 61),
        ("ml.p4d.24xlarge", 96, 1152),
        ("ml.inf2.8xlarge", 32, 128),
    ],
    ids=lambda value: str(value),
)
def test_type_has_processors_and_memory(name: str, vcpus: int, gib: int) -> None:
    found = find_instance_type(name)
    assert found is not None and (found.vcpus, found.memory_bytes) == (vcpus, gib * GIB)


def test_only_these_types_are_unknown() -> None:
    unknown = {name for name in KNOWN_BY_SAGEMAKER if find_instance_type(name) is None}
    families = {name.split(".")[1] for name in unknown}
    assert families <= {"g7", "g7e", "dl1", "trn1", "trn1n", "trn2", "p6-b300", "p6e-gb200"}
    assert len(KNOWN_BY_SAGEMAKER) > 200


@pytest.mark.parametrize("name", ["ml.m5", "m5.large", "ml.m5.enormous", "ml.m5.xxlarge", "ml.z9.large", ""])
def test_name_of_no_type_is_unknown(name: str) -> None:
    assert find_instance_type(name) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [("ml.g5.xlarge", True), ("ml.p4d.24xlarge", True), ("ml.c6g.large", False), ("ml.m5.large", False)],
)
def test_families_g_and_p_have_gpus(name: str, expected: bool) -> None:
    assert has_gpus(name) is expected
