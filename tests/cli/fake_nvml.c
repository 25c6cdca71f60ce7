/* A libnvidia-ml.so.1 with as many GPUs as FAKE_NVML_GPUS says, for nvidia-ml-py to load where there is none.
   GPUs 0-3 and 4-7 reach each other's memory; across the halves they do not. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void *device_t;
enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, P2P_OK = 0, P2P_UNSUPPORTED = 5 };

static int num_gpus(void) {
    const char *text = getenv("FAKE_NVML_GPUS");
    return text ? atoi(text) : 0;
}

static int index_of(device_t device) { return (int)(long)device - 1; }

int nvmlInitWithFlags(unsigned flags) { return SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int result) { return "fake error"; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = num_gpus();
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, device_t *device) {
    if ((int)index >= num_gpus()) return INVALID_ARGUMENT;
    *device = (device_t)(long)(index + 1);
    return SUCCESS;
}

int nvmlDeviceGetUUID(device_t device, char *uuid, unsigned length) {
    snprintf(uuid, length, "GPU-00000000-0000-0000-0000-%012d", index_of(device));
    return SUCCESS;
}

int nvmlDeviceGetName(device_t device, char *name, unsigned length) {
    snprintf(name, length, "Fake GPU %d", index_of(device));
    return SUCCESS;
}

int nvmlDeviceGetP2PStatus(device_t device, device_t other, unsigned kind, int *status) {
    if (getenv("FAKE_NVML_NO_P2P")) return NOT_SUPPORTED;
    *status = index_of(device) / 4 == index_of(other) / 4 ? P2P_OK : P2P_UNSUPPORTED;
    return SUCCESS;
}
