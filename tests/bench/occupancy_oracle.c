/* NVIDIA's occupancy calculator, the header that Triton's wheel carries, behind one function. */
#include <limits.h>
#include <string.h>

#include "cuda_occupancy.h"

int resident_blocks(int capability, int max_threads, int shared_bytes_of_sm, int registers, int shared, int num_warps) {
    struct cudaOccDeviceProp device;
    struct cudaOccFuncAttributes function;
    struct cudaOccDeviceState state;
    struct cudaOccResult result;
    memset(&device, 0, sizeof device);
    memset(&function, 0, sizeof function);
    memset(&state, 0, sizeof state);
    device.computeMajor = capability / 10;
    device.computeMinor = capability % 10;
    device.maxThreadsPerBlock = 1024;
    device.maxThreadsPerMultiprocessor = max_threads;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536;
    device.warpSize = 32;
    device.sharedMemPerBlock = 48 << 10;
    device.sharedMemPerMultiprocessor = shared_bytes_of_sm;
    device.sharedMemPerBlockOptin = shared_bytes_of_sm - 1024;
    device.reservedSharedMemPerBlock = 1024;
    device.numSms = 1;
    function.maxThreadsPerBlock = INT_MAX;
    function.numRegs = registers;
    function.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    function.maxDynamicSharedSizeBytes = device.sharedMemPerBlockOptin;
    function.numBlockBarriers = 1;
    state.carveoutConfig = 100; /* as much shared memory as can be had */
    int status = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &function, &state, num_warps * 32, shared);
    return status == CUDA_OCC_SUCCESS ? result.activeBlocksPerMultiprocessor : -status;
}
