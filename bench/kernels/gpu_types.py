"""What GPUs can do at most, by their makers' data sheets. Nothing here is measured. Knows no kernel."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GpuType:
    """One product. Rates are peaks, without sparsity."""

    device_names: tuple[str, ...]  # what the driver calls it; other forms of it (PCIe, NVL) have other figures
    capability: int  # 10 * major + minor
    memory_gb_s: float  # 1e9 bytes per second
    tensor_tflops: float  # 1e12 per second: bfloat16 products summed in float32
    vector_tflops: float  # 1e12 per second: float32 outside the tensor cores
    source: str


GPU_TYPES = {
    "a100": GpuType(
        ("NVIDIA A100-SXM4-80GB",), 80, 2039, 312, 19.5, "NVIDIA A100 Tensor Core GPU data sheet, A100 80GB SXM"
    ),
    "l40s": GpuType(("NVIDIA L40S",), 89, 864, 362.05, 91.6, "NVIDIA L40S GPU data sheet"),
    "h100": GpuType(
        ("NVIDIA H100 80GB HBM3",), 90, 3350, 989.5, 67, "NVIDIA H100 Tensor Core GPU data sheet, H100 SXM"
    ),
    "h200": GpuType(("NVIDIA H200",), 90, 4800, 989.5, 67, "NVIDIA H200 Tensor Core GPU data sheet, H200 SXM"),
    "b200": GpuType(("NVIDIA B200",), 100, 7700, 2250, 75, "NVIDIA Blackwell architecture data sheet, HGX B200"),
    "rtx5090": GpuType(
        ("NVIDIA GeForce RTX 5090",), 120, 1792, 209.5, 104.8, "NVIDIA RTX Blackwell GPU architecture white paper"
    ),
}


def type_of(device_name: str) -> GpuType | None:
    """The type that the driver calls `device_name`; None when its figures are not here."""
    return next((gpu for gpu in GPU_TYPES.values() if device_name in gpu.device_names), None)
