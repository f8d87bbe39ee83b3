"""Processors, memory and GPUs of the instance types of SageMaker's hosting.

Sources: the tables of https://aws.amazon.com/sagemaker/pricing and https://aws.amazon.com/ec2/instance-types. In most
families memory is proportional to processors, so that a family and a size tell both.
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True, slots=True)
class InstanceType:
    vcpus: int
    memory_bytes: int
    has_gpus: bool


_GIB_PER_VCPU = {
    **dict.fromkeys(("c5", "c5d", "c6g", "c6gd", "c6gn", "c6i", "c6in", "c7g", "c7i", "c8g"), 2.0),
    **dict.fromkeys(("m4", "m5", "m5d", "m6g", "m6gd", "m6i", "m7i", "m8g", "g4dn", "g5", "g6", "inf2"), 4.0),
    **dict.fromkeys(("r5", "r5d", "r6g", "r6gd", "r6i", "r7gd", "r7i", "r8g", "g6e"), 8.0),
}
_VCPUS = {"medium": 1, "large": 2, "xlarge": 4}
"""Processors of the sizes without a number; a size like 12xlarge has twelve times those of xlarge."""
_OTHERS = {
    "t2.medium": (2, 4.0),
    "t2.large": (2, 8.0),
    "t2.xlarge": (4, 16.0),
    "t2.2xlarge": (8, 32.0),
    "c4.large": (2, 3.75),
    "c4.xlarge": (4, 7.5),
    "c4.2xlarge": (8, 15.0),
    "c4.4xlarge": (16, 30.0),
    "c4.8xlarge": (36, 60.0),
    "p2.xlarge": (4, 61.0),
    "p2.8xlarge": (32, 488.0),
    "p2.16xlarge": (64, 732.0),
    "p3.2xlarge": (8, 61.0),
    "p3.8xlarge": (32, 244.0),
    "p3.16xlarge": (64, 488.0),
    "p4d.24xlarge": (96, 1152.0),
    "p4de.24xlarge": (96, 1152.0),
    "p5.4xlarge": (16, 256.0),
    "p5.48xlarge": (192, 2048.0),
    "p5e.48xlarge": (192, 2048.0),
    "p5en.48xlarge": (192, 2048.0),
    "p6-b200.48xlarge": (192, 2048.0),
    "inf1.xlarge": (4, 8.0),
    "inf1.2xlarge": (8, 16.0),
    "inf1.6xlarge": (24, 48.0),
    "inf1.24xlarge": (96, 192.0),
}
"""Processors and GiB of types that no family's rule gives."""


def find_instance_type(name: str) -> InstanceType | None:
    """Return what the type has, or None if these tables don't know it."""
    prefix, _, rest = name.partition(".")
    family, _, size = rest.partition(".")
    if prefix != "ml":
        return None
    if rest in _OTHERS:
        vcpus, gib = _OTHERS[rest]
        return InstanceType(vcpus, round(gib * GIB), has_gpus(name))
    count = size.removesuffix("xlarge")
    times_xlarge = int(count) if size.endswith("xlarge") and count.isdecimal() else 0
    size_vcpus = _VCPUS.get(size, _VCPUS["xlarge"] * times_xlarge)
    if family not in _GIB_PER_VCPU or not size_vcpus:
        return None
    return InstanceType(size_vcpus, round(size_vcpus * _GIB_PER_VCPU[family] * GIB), has_gpus(name))


def has_gpus(name: str) -> bool:
    """Return whether instances of the type have NVIDIA GPUs: the families g and p do."""
    return name.startswith(("ml.g", "ml.p"))
