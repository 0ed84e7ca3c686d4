/* What xl needs to read a domain's file where no Xen runs: devices that can be mapped, and a
   hypervisor whose every answer is 0. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>

static int opened(const char *name, const char *path, int flags, mode_t mode) {
    int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, name);
    return real(strncmp(path, "/dev/xen/", 9) ? path : "/dev/zero", flags, mode);
}

int open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    return opened("open", path, flags, va_arg(rest, int));
}

int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    return opened("open64", path, flags, va_arg(rest, int));
}

int ioctl(int file, unsigned long request, ...) {
    int (*real)(int, unsigned long, ...) = dlsym(RTLD_NEXT, "ioctl");
    va_list rest;
    va_start(rest, request);
    /* IOCTL_PRIVCMD_HYPERCALL */
    return (request & 0xffff) == 'P' << 8 ? 0 : real(file, request, va_arg(rest, void *));
}
