// Which of the instruction sets that the other files are compiled for this CPU has. Itself runs on any x86-64.

extern "C" __attribute__((visibility("default"))) int pdq_supported(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
