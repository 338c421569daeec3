/* A file system that refuses some calls, as network and shared folders do, to be loaded with LD_PRELOAD. Below
   $REFUSE_UNDER each call below fails with the error number in its variable, if that is set:
   $REFUSE_FOLDER_FSYNC, $REFUSE_FILE_FSYNC, $REFUSE_FOLDER_OPEN, $REFUSE_FLOCK, $REFUSE_RENAME, and $REFUSE_ACROSS for
   renaming from one folder to another. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define REAL(name, type) ((type)dlsym(RTLD_NEXT, name))

static int is_below(const char *path) {
  const char *root = getenv("REFUSE_UNDER");
  return root && strncmp(path, root, strlen(root)) == 0;
}

static int refused(const char *variable, const char *path) {
  const char *number = getenv(variable);
  if (!number || !is_below(path)) return 0;
  errno = atoi(number);
  return 1;
}

static const char *path_of(int descriptor, char *path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, PATH_MAX - 1);
  path[length < 0 ? 0 : length] = 0;
  return path;
}

int fsync(int descriptor) {
  char path[PATH_MAX];
  struct stat about;
  int is_folder = !fstat(descriptor, &about) && S_ISDIR(about.st_mode);
  if (refused(is_folder ? "REFUSE_FOLDER_FSYNC" : "REFUSE_FILE_FSYNC", path_of(descriptor, path))) return -1;
  return REAL("fsync", int (*)(int))(descriptor);
}

int flock(int descriptor, int operation) {
  char path[PATH_MAX];
  if (refused("REFUSE_FLOCK", path_of(descriptor, path))) return -1;
  return REAL("flock", int (*)(int, int))(descriptor, operation);
}

int rename(const char *from, const char *to) {
  size_t folder = strrchr(to, '/') ? (size_t)(strrchr(to, '/') - to) : 0;
  int is_across = strncmp(from, to, folder + 1) || strchr(from + folder + 1, '/');
  if (refused("REFUSE_RENAME", to) || (is_across && refused("REFUSE_ACROSS", to))) return -1;
  return REAL("rename", int (*)(const char *, const char *))(from, to);
}

static int opened(const char *name, const char *path, int flags, va_list rest) {
  struct stat about;
  int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0;
  if (!stat(path, &about) && S_ISDIR(about.st_mode) && !(flags & (O_CREAT | O_TMPFILE)) &&
      refused("REFUSE_FOLDER_OPEN", path))
    return -1;
  return REAL(name, int (*)(const char *, int, ...))(path, flags, mode);
}

int open(const char *path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  int result = opened("open", path, flags, rest);
  va_end(rest);
  return result;
}

int open64(const char *path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  int result = opened("open64", path, flags, rest);
  va_end(rest);
  return result;
}
