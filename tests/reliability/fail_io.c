/* A file system that fails on request, to be loaded before a program (LD_PRELOAD). Calls that change files under
 * FAIL_IO_ROOT (open for writing, pwrite, write, fsync, fdatasync, close, rename, renameat2, mkdir) are counted, and one
 * of them can be made to go wrong:
 *
 *   FAIL_IO_AT=n FAIL_IO_DO=ENOSPC|EIO|EDQUOT   the n-th call fails once (fsync and close do their work first)
 *   FAIL_IO_AT=n FAIL_IO_DO=kill                the process dies before the n-th call, as by kill -9
 *   FAIL_IO_AT=n FAIL_IO_DO=crash               the same, and then the machine loses what was not synced: files get
 *                                               back the length of their last fsync
 *   FAIL_IO_AT=n FAIL_IO_DO=crash-names         the same, and creations and renames whose directory was not synced
 *                                               since never happened (removals did: the harshest order)
 *   FAIL_IO_DISK=bytes                          files under the root hold no more than that; statvfs tells the rest
 *   FAIL_IO_DISK_HIDDEN=1                       ... and does not, as with a quota
 *   FAIL_IO_LIE=1                               fsync and fdatasync do nothing and say it worked: a check of the checks
 *   FAIL_IO_LOG=file                            one line a counted call: number, name, path
 *
 * Build: cc -shared -fPIC -O1 -o fail_io.so fail_io.c -ldl -lpthread
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define MOST_FDS 1024
#define MOST_NAMES 4096

struct file {            /* opened for writing under the root */
  int open;              /* by the program */
  int spare;             /* our own descriptor, to cut the file short; -1: none */
  off_t synced;          /* length at its last fsync, or when it was opened */
  int is_directory;
  char path[PATH_MAX];
};
struct name {            /* a change of a directory that is not synced yet */
  enum { CREATED, MADE, RENAMED, EXCHANGED } what;
  char from[PATH_MAX], to[PATH_MAX], backup[PATH_MAX];
};

static pthread_mutex_t mutex = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static struct file files[MOST_FDS];
static struct name *names;
static int name_count;
static int backups;
static long calls, at = -1, disk = -1;
static int disk_hidden, lie, ready;
static char root[PATH_MAX];
static const char *action = "", *log_path;

static void *real(const char *name) {
  void *found = dlsym(RTLD_NEXT, name);
  if (found == NULL) _exit(99);
  return found;
}
#define REAL(type, name) \
  static type real_##name; \
  if (real_##name == NULL) real_##name = (type)real(#name)

typedef int (*open_type)(const char *, int, ...);
typedef int (*fd_type)(int);
typedef ssize_t (*write_type)(int, const void *, size_t);
typedef ssize_t (*pwrite_type)(int, const void *, size_t, off_t);
typedef int (*rename_type)(const char *, const char *);
typedef int (*renameat2_type)(int, const char *, int, const char *, unsigned);
typedef int (*mkdir_type)(const char *, mode_t);
typedef int (*statvfs_type)(const char *, struct statvfs *);

static void prepare(void) {
  if (ready) return;
  ready = 1;
  for (int i = 0; i < MOST_FDS; ++i) files[i].spare = -1;
  names = calloc(MOST_NAMES, sizeof(*names));
  const char *text = getenv("FAIL_IO_ROOT");
  if (text == NULL || realpath(text, root) == NULL) root[0] = '\0';
  if ((text = getenv("FAIL_IO_AT")) != NULL) at = atol(text);
  if ((text = getenv("FAIL_IO_DO")) != NULL) action = text;
  if ((text = getenv("FAIL_IO_DISK")) != NULL) disk = atol(text);
  disk_hidden = getenv("FAIL_IO_DISK_HIDDEN") != NULL;
  lie = getenv("FAIL_IO_LIE") != NULL;
  log_path = getenv("FAIL_IO_LOG");
}

/* The path without symbolic links, whether or not its last part exists; 0 if it is not under the root. */
static int under_root(const char *path, char *full) {
  prepare();
  if (root[0] == '\0' || path == NULL) return 0;
  char copy[PATH_MAX], folder[PATH_MAX];
  snprintf(copy, sizeof(copy), "%s", path);
  size_t length = strlen(copy);
  while (length > 1 && copy[length - 1] == '/') copy[--length] = '\0';
  char *slash = strrchr(copy, '/');
  const char *last = slash == NULL ? copy : slash + 1;
  char parent[PATH_MAX] = ".";
  if (slash == copy) snprintf(parent, sizeof(parent), "/");
  else if (slash != NULL) snprintf(parent, sizeof(parent), "%.*s", (int)(slash - copy), copy);
  if (realpath(parent, folder) == NULL) return 0;
  if (strlen(folder) + strlen(last) + 2 > PATH_MAX) return 0;
  strcpy(full, folder);
  strcat(full, "/");
  strcat(full, last);
  const size_t n = strlen(root);
  return strncmp(full, root, n) == 0 && (full[n] == '/' || full[n] == '\0');
}

static int remove_one(const char *path, const struct stat *status, int kind, struct FTW *where) {
  (void)status, (void)kind, (void)where;
  return remove(path);
}

static void forget_names_in(const char *directory) {
  int kept = 0;
  const size_t n = strlen(directory);
  for (int i = 0; i < name_count; ++i) {
    const char *slash = strrchr(names[i].to, '/');
    const int inside = slash != NULL && (size_t)(slash - names[i].to) == n && strncmp(names[i].to, directory, n) == 0;
    if (inside && names[i].backup[0] != '\0') unlink(names[i].backup);
    if (!inside) names[kept++] = names[i];
  }
  name_count = kept;
}

static void note_name(int what, const char *from, const char *to, const char *backup) {
  if (name_count == MOST_NAMES) _exit(98);
  struct name *name = &names[name_count++];
  name->what = what;
  snprintf(name->from, PATH_MAX, "%s", from);
  snprintf(name->to, PATH_MAX, "%s", to);
  snprintf(name->backup, PATH_MAX, "%s", backup);
}

static void lose_what_was_not_synced(int names_too) {
  REAL(rename_type, rename);
  REAL(renameat2_type, renameat2);
  for (int i = 0; i < MOST_FDS; ++i) {
    struct stat status;
    if (files[i].spare < 0 || fstat(files[i].spare, &status) != 0) continue;
    if (status.st_size > files[i].synced && ftruncate(files[i].spare, files[i].synced) != 0) _exit(97);
  }
  for (int i = name_count - 1; names_too && i >= 0; --i) {
    struct name *name = &names[i];
    switch (name->what) {
      case CREATED:
        unlink(name->to);
        break;
      case MADE:
        nftw(name->to, remove_one, 16, FTW_DEPTH | FTW_PHYS);
        break;
      case RENAMED:
        real_rename(name->to, name->from);
        if (name->backup[0] != '\0') real_rename(name->backup, name->to);
        break;
      case EXCHANGED:
        if (real_renameat2(AT_FDCWD, name->from, AT_FDCWD, name->to, RENAME_EXCHANGE) != 0) {
          real_rename(name->to, name->from); /* the replaced one was removed already */
        }
        break;
    }
  }
}

/* Counts a call. Returns the error with which it has to fail, or 0. */
static int count(const char *call, const char *path) {
  const long number = ++calls;
  if (log_path != NULL) {
    FILE *log = fopen(log_path, "a");
    if (log != NULL) {
      fprintf(log, "%ld %s %s\n", number, call, path);
      fclose(log);
    }
  }
  if (number != at) return 0;
  if (strcmp(action, "ENOSPC") == 0) return ENOSPC;
  if (strcmp(action, "EIO") == 0) return EIO;
  if (strcmp(action, "EDQUOT") == 0) return EDQUOT;
  if (strncmp(action, "crash", 5) == 0) lose_what_was_not_synced(strcmp(action, "crash-names") == 0);
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

static long used;
static int add_size(const char *path, const struct stat *status, int kind, struct FTW *where) {
  (void)path, (void)where;
  if (kind == FTW_F) used += status->st_size;
  return 0;
}
static long room_left(void) {
  used = 0;
  nftw(root, add_size, 16, FTW_PHYS);
  return used < disk ? disk - used : 0;
}

static int open_any(open_type function, const char *path, int flags, mode_t mode) {
  char full[PATH_MAX];
  REAL(open_type, open);
  const int writes = (flags & O_ACCMODE) != O_RDONLY;
  if (!(writes || (flags & O_DIRECTORY)) || !under_root(path, full)) return function(path, flags, mode);
  pthread_mutex_lock(&mutex);
  const int error = writes ? count("open", full) : 0;
  struct stat status;
  const int existed = stat(full, &status) == 0;
  int fd = -1;
  if (error != 0) errno = error;
  else fd = function(path, flags, mode);
  if (fd >= 0 && fd < MOST_FDS) {
    struct file *file = &files[fd];
    if (file->spare >= 0) { /* closed and never synced: keep it elsewhere */
      for (int i = MOST_FDS - 1; i > fd; --i) {
        if (files[i].open || files[i].spare >= 0) continue;
        files[i] = *file;
        break;
      }
    }
    file->open = 1;
    file->is_directory = !writes;
    file->synced = existed && !(flags & O_TRUNC) ? status.st_size : 0;
    file->spare = writes ? real_open(full, O_RDWR | O_CLOEXEC) : -1;
    snprintf(file->path, PATH_MAX, "%s", full);
    if (writes && !existed) note_name(CREATED, "", full, "");
  }
  pthread_mutex_unlock(&mutex);
  return fd;
}

int open(const char *path, int flags, ...) {
  REAL(open_type, open);
  va_list list;
  va_start(list, flags);
  const mode_t mode = (flags & O_CREAT) ? va_arg(list, mode_t) : 0;
  va_end(list);
  return open_any(real_open, path, flags, mode);
}
int open64(const char *path, int flags, ...) {
  REAL(open_type, open64);
  va_list list;
  va_start(list, flags);
  const mode_t mode = (flags & O_CREAT) ? va_arg(list, mode_t) : 0;
  va_end(list);
  return open_any(real_open64, path, flags, mode);
}

static int known(int fd) { return fd >= 0 && fd < MOST_FDS && files[fd].open; }

/* How much of a write may happen: *size is lowered. Returns an error or 0. */
static int before_write(const char *call, int fd, size_t *size) {
  const int error = count(call, files[fd].path);
  if (error != 0) return error;
  if (disk < 0) return 0;
  const long left = room_left();
  if (left == 0) return ENOSPC;
  if (*size > (size_t)left) *size = (size_t)left;
  return 0;
}

ssize_t write(int fd, const void *data, size_t size) {
  REAL(write_type, write);
  if (!known(fd)) return real_write(fd, data, size);
  pthread_mutex_lock(&mutex);
  const int error = before_write("write", fd, &size);
  const ssize_t result = error == 0 ? real_write(fd, data, size) : -1;
  if (error != 0) errno = error;
  pthread_mutex_unlock(&mutex);
  return result;
}
static ssize_t pwrite_any(pwrite_type function, int fd, const void *data, size_t size, off_t offset) {
  if (!known(fd)) return function(fd, data, size, offset);
  pthread_mutex_lock(&mutex);
  const int error = before_write("pwrite", fd, &size);
  const ssize_t result = error == 0 ? function(fd, data, size, offset) : -1;
  if (error != 0) errno = error;
  pthread_mutex_unlock(&mutex);
  return result;
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
  REAL(pwrite_type, pwrite);
  return pwrite_any(real_pwrite, fd, data, size, offset);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off_t offset) {
  REAL(pwrite_type, pwrite64);
  return pwrite_any(real_pwrite64, fd, data, size, offset);
}

static int sync_any(const char *call, fd_type function, int fd) {
  if (!known(fd)) return function(fd);
  pthread_mutex_lock(&mutex);
  const int error = count(call, files[fd].path);
  int result = -1;
  struct stat status;
  if (error == 0 && lie) {
    result = 0;
  } else if (error == 0) {
    result = function(fd);
    if (result == 0 && files[fd].is_directory) forget_names_in(files[fd].path);
    else if (result == 0 && fstat(fd, &status) == 0) files[fd].synced = status.st_size;
  } else {
    errno = error;
  }
  pthread_mutex_unlock(&mutex);
  return result;
}
int fsync(int fd) {
  REAL(fd_type, fsync);
  return sync_any("fsync", real_fsync, fd);
}
int fdatasync(int fd) {
  REAL(fd_type, fdatasync);
  return sync_any("fdatasync", real_fdatasync, fd);
}

int close(int fd) {
  REAL(fd_type, close);
  if (!known(fd)) return real_close(fd);
  pthread_mutex_lock(&mutex);
  const int error = files[fd].is_directory ? 0 : count("close", files[fd].path);
  files[fd].open = 0;
  struct stat status;
  /* A closed file that was never synced can still be lost, so its spare descriptor stays. */
  if (files[fd].spare >= 0 && fstat(files[fd].spare, &status) == 0 && status.st_size <= files[fd].synced) {
    real_close(files[fd].spare);
    files[fd].spare = -1;
  }
  int result = real_close(fd);
  if (error != 0) {
    errno = error;
    result = -1;
  }
  pthread_mutex_unlock(&mutex);
  return result;
}

static int rename_any(const char *from, const char *to, unsigned flags) {
  REAL(rename_type, rename);
  REAL(renameat2_type, renameat2);
  char full_from[PATH_MAX], full_to[PATH_MAX], backup[PATH_MAX] = "";
  const int matters = under_root(to, full_to) && under_root(from, full_from);
  if (!matters) return flags == 0 ? real_rename(from, to) : real_renameat2(AT_FDCWD, from, AT_FDCWD, to, flags);
  pthread_mutex_lock(&mutex);
  const int error = count(flags == 0 ? "rename" : "renameat2", full_to);
  int result = -1;
  struct stat status;
  if (error == 0) {
    if (flags == 0 && stat(full_to, &status) == 0 && S_ISREG(status.st_mode) && strlen(root) + 40 < PATH_MAX) {
      strcpy(backup, root);
      sprintf(backup + strlen(backup), ".lost-%d-%d", (int)getpid(), ++backups);
      unlink(backup);
      if (link(full_to, backup) != 0) backup[0] = '\0';
    }
    result = flags == 0 ? real_rename(from, to) : real_renameat2(AT_FDCWD, from, AT_FDCWD, to, flags);
    const int reason = errno;
    if (result == 0) note_name(flags == 0 ? RENAMED : EXCHANGED, full_from, full_to, backup);
    else if (backup[0] != '\0') unlink(backup);
    errno = reason;
  } else {
    errno = error;
  }
  pthread_mutex_unlock(&mutex);
  return result;
}
int rename(const char *from, const char *to) { return rename_any(from, to, 0); }
int renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned flags) {
  REAL(renameat2_type, renameat2);
  if (from_fd != AT_FDCWD || to_fd != AT_FDCWD) return real_renameat2(from_fd, from, to_fd, to, flags);
  return rename_any(from, to, flags);
}

int mkdir(const char *path, mode_t mode) {
  REAL(mkdir_type, mkdir);
  char full[PATH_MAX];
  if (!under_root(path, full)) return real_mkdir(path, mode);
  pthread_mutex_lock(&mutex);
  const int error = count("mkdir", full);
  int result = -1;
  if (error == 0) {
    result = real_mkdir(path, mode);
    if (result == 0) note_name(MADE, "", full, "");
  } else {
    errno = error;
  }
  pthread_mutex_unlock(&mutex);
  return result;
}

static int statvfs_any(statvfs_type function, const char *path, struct statvfs *status) {
  char full[PATH_MAX];
  const int result = function(path, status);
  if (result != 0 || disk < 0 || disk_hidden || !under_root(path, full)) return result;
  pthread_mutex_lock(&mutex);
  status->f_frsize = status->f_bsize = 1;
  status->f_bavail = status->f_bfree = (fsblkcnt_t)room_left();
  pthread_mutex_unlock(&mutex);
  return 0;
}
int statvfs(const char *path, struct statvfs *status) {
  REAL(statvfs_type, statvfs);
  return statvfs_any(real_statvfs, path, status);
}
int statvfs64(const char *path, struct statvfs64 *status) {
  REAL(statvfs_type, statvfs64);
  return statvfs_any(real_statvfs64, path, (struct statvfs *)status);
}
