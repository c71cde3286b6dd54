/* Counts the file operations of a process and its children below one folder, and does something bad at one of them.
 *
 * Preloaded (LD_PRELOAD) it does nothing until fault_arm() is called. Counters are in memory that children share.
 * Operations: opening for writing, write, pwrite, writev, sendfile, truncate, fsync, rename, link, symlink, mkdir, unlink, rmdir. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, KILL, FAIL, FAIL_ONCE, SIGNAL, STOP };
struct report { atomic_int count, hit; };
static struct report *shared;
static char folder[PATH_MAX];
static size_t folder_length;
static int mode = -1, at, what, log_fd = -1, main_pid;

/* What the operation is to end with: 0 go on, else an errno. */
static int meet(const char *operation, const char *path, int removes, int *torn)
{
    int n = atomic_fetch_add(&shared->count, 1) + 1;
    if (log_fd >= 0) {
        char line[PATH_MAX + 64];
        int length = snprintf(line, sizeof line, "%d %s %s\n", n, operation, path);
        syscall(SYS_write, log_fd, line, length);
    }
    if (mode == FAIL && n >= at) {
        /* A full disk lets files go; a read-only one does not, and one without permission takes what is open already. */
        if (what == ENOSPC && removes) return 0;
        if (what == EACCES && (!strcmp(operation, "write") || !strcmp(operation, "fsync"))) return 0;
        if (what == EROFS && !strcmp(operation, "fsync")) return 0;
        atomic_store(&shared->hit, 1);
        return what;
    }
    if (n != at || mode == COUNT) return 0;
    atomic_store(&shared->hit, 1);
    if (mode == FAIL_ONCE) return what;
    if (mode == KILL) {
        if (torn) { *torn = 1; return 0; }
        kill(0, SIGKILL);
        pause();
    }
    if (mode == SIGNAL) kill(main_pid, what);
    if (mode == STOP) kill(0, SIGSTOP);
    return 0;
}

static int below(const char *path)
{
    return !strncmp(path, folder, folder_length) && (path[folder_length] == '/' || !path[folder_length]);
}

static int watched_path(int dir, const char *path, char *whole)
{
    if (mode < 0 || !path) return 0;
    if (path[0] == '/') snprintf(whole, PATH_MAX, "%s", path);
    else {
        char base[PATH_MAX], link[64];
        ssize_t length;
        if (dir == AT_FDCWD) { if (!getcwd(base, sizeof base)) return 0; }
        else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
            if ((length = readlink(link, base, sizeof base - 1)) < 0) return 0;
            base[length] = 0;
        }
        if (snprintf(whole, PATH_MAX, "%s/%s", base, path) >= PATH_MAX) return 0;
    }
    return below(whole);
}

static int watched_fd(int fd, char *whole)
{
    char link[64];
    ssize_t length;
    if (mode < 0 || fd == log_fd) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if ((length = readlink(link, whole, PATH_MAX - 1)) < 0) return 0;
    whole[length] = 0;
    return below(whole);
}

/* Counters that the children of this process share with it. */
void *fault_report(void)
{
    void *found = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return found == MAP_FAILED ? NULL : found;
}
void fault_share(void *report) { shared = report; }
int fault_count(void *report) { return atomic_load(&((struct report *)report)->count); }
int fault_hit(void *report) { return atomic_load(&((struct report *)report)->hit); }

/* From now on, below this folder; the numbers are those of the enumeration at the top. */
int fault_arm(const char *place, int kind, int number, int value, int log)
{
    if (!shared || !realpath(place, folder)) return -1;
    folder_length = strlen(folder);
    at = number, what = value, log_fd = log, main_pid = getpid();
    mode = kind;
    return 0;
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)
#define CHECK(test, operation, removes) \
    do { char whole[PATH_MAX]; int error; \
         if ((test) && (error = meet(operation, whole, removes, NULL))) { errno = error; return -1; } } while (0)

static int opens_for_writing(int flags) { return (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC); }
static mode_t mode_of(int flags, va_list rest) { return flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; }

#define OPEN(name) \
int name(const char *path, int flags, ...) \
{ \
    REAL(name); \
    va_list rest; va_start(rest, flags); mode_t rights = mode_of(flags, rest); va_end(rest); \
    CHECK(opens_for_writing(flags) && watched_path(AT_FDCWD, path, whole), "open", 0); \
    return real(path, flags, rights); \
}
OPEN(open)
OPEN(open64)
#define OPENAT(name) \
int name(int dir, const char *path, int flags, ...) \
{ \
    REAL(name); \
    va_list rest; va_start(rest, flags); mode_t rights = mode_of(flags, rest); va_end(rest); \
    CHECK(opens_for_writing(flags) && watched_path(dir, path, whole), "open", 0); \
    return real(dir, path, flags, rights); \
}
OPENAT(openat)
OPENAT(openat64)
#define FOPEN(name) \
FILE *name(const char *path, const char *how) \
{ \
    REAL(name); \
    char whole[PATH_MAX]; int error; \
    if (strpbrk(how, "wa+") && watched_path(AT_FDCWD, path, whole) && (error = meet("open", whole, 0, NULL))) { \
        errno = error; return NULL; } \
    return real(path, how); \
}
FOPEN(fopen)
FOPEN(fopen64)

/* A killed write leaves its first half. */
#define WRITE(call, half) \
    do { char whole[PATH_MAX]; int error, torn = 0; \
         if (watched_fd(fd, whole)) { \
             error = meet("write", whole, 0, &torn); \
             if (torn) { half; kill(0, SIGKILL); pause(); } \
             if (error) { errno = error; return -1; } } \
         return call; } while (0)
ssize_t write(int fd, const void *buffer, size_t size)
{ REAL(write); WRITE(real(fd, buffer, size), real(fd, buffer, size / 2)); }
ssize_t pwrite(int fd, const void *buffer, size_t size, off_t place)
{ REAL(pwrite); WRITE(real(fd, buffer, size, place), real(fd, buffer, size / 2, place)); }
ssize_t pwrite64(int fd, const void *buffer, size_t size, off64_t place)
{ REAL(pwrite64); WRITE(real(fd, buffer, size, place), real(fd, buffer, size / 2, place)); }
ssize_t writev(int fd, const struct iovec *parts, int count)
{ REAL(writev); WRITE(real(fd, parts, count), real(fd, parts, count / 2)); }
ssize_t sendfile(int fd, int source, off_t *place, size_t size);
ssize_t sendfile(int fd, int source, off_t *place, size_t size)
{ REAL(sendfile); WRITE(real(fd, source, place, size), real(fd, source, place, size / 2)); }
ssize_t sendfile64(int fd, int source, off64_t *place, size_t size);
ssize_t sendfile64(int fd, int source, off64_t *place, size_t size)
{ REAL(sendfile64); WRITE(real(fd, source, place, size), real(fd, source, place, size / 2)); }

int fsync(int fd) { REAL(fsync); CHECK(watched_fd(fd, whole), "fsync", 0); return real(fd); }
int fdatasync(int fd) { REAL(fdatasync); CHECK(watched_fd(fd, whole), "fsync", 0); return real(fd); }
int ftruncate(int fd, off_t size)
{ REAL(ftruncate); CHECK(watched_fd(fd, whole), "truncate", 1); return real(fd, size); }
int ftruncate64(int fd, off64_t size)
{ REAL(ftruncate64); CHECK(watched_fd(fd, whole), "truncate", 1); return real(fd, size); }
int rename(const char *from, const char *to)
{ REAL(rename); CHECK(watched_path(AT_FDCWD, to, whole), "rename", 0); return real(from, to); }
int renameat(int first, const char *from, int second, const char *to)
{ REAL(renameat); CHECK(watched_path(second, to, whole), "rename", 0); return real(first, from, second, to); }
int link(const char *from, const char *to)
{ REAL(link); CHECK(watched_path(AT_FDCWD, to, whole), "link", 0); return real(from, to); }
int linkat(int first, const char *from, int second, const char *to, int flags)
{ REAL(linkat); CHECK(watched_path(second, to, whole), "link", 0); return real(first, from, second, to, flags); }
int symlink(const char *from, const char *to)
{ REAL(symlink); CHECK(watched_path(AT_FDCWD, to, whole), "link", 0); return real(from, to); }
int mkdir(const char *path, mode_t rights)
{ REAL(mkdir); CHECK(watched_path(AT_FDCWD, path, whole), "mkdir", 0); return real(path, rights); }
int mkdirat(int dir, const char *path, mode_t rights)
{ REAL(mkdirat); CHECK(watched_path(dir, path, whole), "mkdir", 0); return real(dir, path, rights); }
int unlink(const char *path)
{ REAL(unlink); CHECK(watched_path(AT_FDCWD, path, whole), "unlink", 1); return real(path); }
int unlinkat(int dir, const char *path, int flags)
{ REAL(unlinkat); CHECK(watched_path(dir, path, whole), "unlink", 1); return real(dir, path, flags); }
int rmdir(const char *path)
{ REAL(rmdir); CHECK(watched_path(AT_FDCWD, path, whole), "rmdir", 1); return real(path); }
