"""What the machine says of itself: GPUs by NVML, CPU and memory by psutil, versions."""
