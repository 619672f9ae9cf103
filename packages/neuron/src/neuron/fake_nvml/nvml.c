// SPDX-License-Identifier: GPL-3.0-or-later
// What a driver says, read at each call from the file that FAKE_NVML names: lines of `key value`.
//
//   init N, driver TEXT, nvml TEXT, cuda N, count N         of the driver; a value `!N` is the error N,
//                                                           `~` never comes, and the file gets a sibling `.hangs`
//   I.field VALUE                                           of GPU I: uuid name capability memory utilization
//                                                           temperature power processes mig lost
//   I.S.field VALUE                                         of its MIG instance S
//
// `memory` is `TOTAL USED` in MiB, `processes` is `PID:MIB ...` or `PID:N/A`. What is not there is not supported.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15 };
enum { MIG = 1000, MIG_PER_GPU = 10, LINE = 1024 };

typedef int Result;
typedef unsigned long Handle;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned int gpu, memory; } Utilization;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gi, ci; } Process;

static void hang(const char *path) {
    char name[LINE];
    snprintf(name, sizeof name, "%s.hangs", path);
    FILE *file = fopen(name, "w");
    if (file) fclose(file);
    for (;;) pause();
}

static Result find(const char *key, char *value) {
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[LINE];
    size_t length = strlen(key);
    Result result = NOT_SUPPORTED;
    while (file && fgets(line, LINE, file)) {
        line[strcspn(line, "\n")] = 0;
        if (strncmp(line, key, length) == 0 && line[length] == ' ') {
            strcpy(value, line + length + 1);
            result = value[0] == '!' ? atoi(value + 1) : SUCCESS;
            break;
        }
    }
    if (file) fclose(file);
    if (result == SUCCESS && strcmp(value, "~") == 0) hang(path);
    return result;
}

static Result ask(Handle device, const char *field, char *value) {
    char key[64], lost[LINE];
    unsigned long gpu = device >= MIG ? (device - MIG) / MIG_PER_GPU : device - 1;
    snprintf(key, sizeof key, "%lu.lost", gpu);
    if (find(key, lost) == SUCCESS) return GPU_IS_LOST;
    if (device >= MIG)
        snprintf(key, sizeof key, "%lu.%lu.%s", gpu, (device - MIG) % MIG_PER_GPU, field);
    else
        snprintf(key, sizeof key, "%lu.%s", gpu, field);
    return find(key, value);
}

static Result text(Result result, const char *value, char *out, unsigned int size) {
    if (result == SUCCESS) snprintf(out, size, "%s", value);
    return result;
}

static Result number(Result result, const char *value, unsigned int *out) {
    if (result == SUCCESS) *out = (unsigned int)strtoul(value, NULL, 10);
    return result;
}

Result nvmlInitWithFlags(unsigned int flags) {
    char value[LINE];
    Result result = find("init", value);
    (void)flags;
    return result == NOT_SUPPORTED ? SUCCESS : result;
}

Result nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(Result result) {
    static char said[32];
    snprintf(said, sizeof said, "error %d of the fake", result);
    return said;
}

Result nvmlSystemGetDriverVersion(char *out, unsigned int size) {
    char value[LINE];
    return text(find("driver", value), value, out, size);
}

Result nvmlSystemGetNVMLVersion(char *out, unsigned int size) {
    char value[LINE];
    return text(find("nvml", value), value, out, size);
}

Result nvmlSystemGetCudaDriverVersion_v2(int *out) {
    char value[LINE];
    return number(find("cuda", value), value, (unsigned int *)out);
}

Result nvmlDeviceGetCount_v2(unsigned int *out) {
    char value[LINE];
    return number(find("count", value), value, out);
}

Result nvmlDeviceGetHandleByIndex_v2(unsigned int index, Handle *out) {
    char value[LINE];
    *out = index + 1;
    return ask(*out, "uuid", value);
}

Result nvmlDeviceGetUUID(Handle device, char *out, unsigned int size) {
    char value[LINE];
    return text(ask(device, "uuid", value), value, out, size);
}

Result nvmlDeviceGetName(Handle device, char *out, unsigned int size) {
    char value[LINE];
    return text(ask(device, "name", value), value, out, size);
}

Result nvmlDeviceGetCudaComputeCapability(Handle device, int *major, int *minor) {
    char value[LINE];
    Result result = ask(device, "capability", value);
    if (result == SUCCESS && sscanf(value, "%d.%d", major, minor) != 2) return NOT_SUPPORTED;
    return result;
}

Result nvmlDeviceGetMemoryInfo(Handle device, Memory *out) {
    char value[LINE];
    unsigned long long total, used;
    Result result = ask(device, "memory", value);
    if (result != SUCCESS) return result;
    if (sscanf(value, "%llu %llu", &total, &used) != 2) return NOT_SUPPORTED;
    out->total = total << 20;
    out->used = used << 20;
    out->free = (total - used) << 20;
    return SUCCESS;
}

Result nvmlDeviceGetUtilizationRates(Handle device, Utilization *out) {
    char value[LINE];
    out->memory = 0;
    return number(ask(device, "utilization", value), value, &out->gpu);
}

Result nvmlDeviceGetTemperature(Handle device, unsigned int sensor, unsigned int *out) {
    char value[LINE];
    (void)sensor;
    return number(ask(device, "temperature", value), value, out);
}

Result nvmlDeviceGetPowerUsage(Handle device, unsigned int *out) {
    char value[LINE];
    return number(ask(device, "power", value), value, out);
}

Result nvmlDeviceGetComputeRunningProcesses_v3(Handle device, unsigned int *count, Process *out) {
    char value[LINE], *rest = value;
    Process found[16];
    unsigned int n = 0;
    int used;
    Result result = ask(device, "processes", value);
    if (result != SUCCESS) return result;
    while (n < 16 && sscanf(rest, " %u:%n", &found[n].pid, &used) == 1) {
        rest += used;
        found[n].used = *rest == 'N' ? ~0ULL : strtoull(rest, NULL, 10) << 20;
        found[n].gi = found[n].ci = 0;
        rest += strcspn(rest, " ");
        n++;
    }
    if (n == 0) {
        *count = 0;
        return SUCCESS;
    }
    if (*count < n) {
        *count = n;
        return INSUFFICIENT_SIZE;
    }
    *count = n;
    memcpy(out, found, n * sizeof *out);
    return SUCCESS;
}

Result nvmlDeviceGetMigMode(Handle device, unsigned int *current, unsigned int *pending) {
    char value[LINE];
    Result result = number(ask(device, "mig", value), value, current);
    *pending = *current;
    return result;
}

Result nvmlDeviceGetMaxMigDeviceCount(Handle device, unsigned int *out) {
    (void)device;
    *out = 7;
    return SUCCESS;
}

Result nvmlDeviceGetMigDeviceHandleByIndex(Handle device, unsigned int index, Handle *out) {
    char value[LINE];
    Result result;
    *out = MIG + (device - 1) * MIG_PER_GPU + index;
    result = ask(*out, "uuid", value);
    return result == NOT_SUPPORTED ? NOT_FOUND : result;
}
