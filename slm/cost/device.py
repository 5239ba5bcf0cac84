"""Known peaks and memories of devices. An unknown one is None, shown as n/a: a guess would make every MFU a lie."""

from __future__ import annotations

PEAK_BF16 = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989.4e12,
    "H200": 989.4e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165.2e12,
}
"""Dense bf16 FLOP/s with fp32 accumulation, from the makers' data sheets; the first name that occurs counts."""


def peak_flops(device_name: str | None) -> float | None:
    """Peak of a device by the name that its driver gives, or None when it isn't known."""
    return next((peak for name, peak in PEAK_BF16.items() if device_name and name in device_name), None)


BANDWIDTH = {
    "H100 PCIe": 2.0e12,
    "H100 NVL": 3.9e12,
    "H100": 3.35e12,
    "H200": 4.8e12,
    "A100-SXM4-40GB": 1.555e12,
    "A100-PCIE-40GB": 1.555e12,
    "A100 80GB PCIe": 1.935e12,
    "A100": 2.039e12,
    "L40S": 0.864e12,
    "RTX 4090": 1.008e12,
}
"""Bytes per second of a device's memory, from the makers' data sheets; the first name that occurs counts."""


def bandwidth(device_name: str | None) -> float | None:
    """Bytes per second by the name that the driver gives, or None when it isn't known."""
    return next((rate for name, rate in BANDWIDTH.items() if device_name and name in device_name), None)


MEMORY = {
    "H100 NVL": 94_000_000_000,
    "H100": 80_000_000_000,
    "H200": 141_000_000_000,
    "A100-SXM4-40GB": 40_000_000_000,
    "A100-PCIE-40GB": 40_000_000_000,
    "A100": 80_000_000_000,
    "L40S": 48_000_000_000,
    "RTX 4090": 24_000_000_000,
}
"""Bytes of memory, from the makers' data sheets; the first name that occurs counts."""


WITHOUT_FP8 = ("A100",)
"""Devices of these tables that have no 8-bit products."""


def memory_bytes(device_name: str | None) -> int | None:
    """Memory of a device by the name that its driver gives, or None when it isn't known."""
    return next((size for name, size in MEMORY.items() if device_name and name in device_name), None)
