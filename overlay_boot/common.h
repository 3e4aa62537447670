/* What reaper.c and helper.c share. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static inline void say(int fd, const char *first, const char *second, const char *third)
{
    char line[640] = "";

    strncat(line, first, 300);
    strncat(line, second, 200);
    strncat(line, third, 100);
    strcat(line, "\n");
    (void)!write(fd, line, strlen(line));
}

static const char *self; /* the command that this works for, as its messages begin */

static inline int complain(const char *what)
{
    const char *why = strerror(errno);

    (void)!write(2, self, strlen(self));
    (void)!write(2, ": ", 2);
    say(2, what, ": ", why);
    return 1;
}

static inline pid_t number(const char *digit)
{
    pid_t value = 0;

    for (; *digit >= '0' && *digit <= '9'; digit++)
        value = value * 10 + (*digit - '0');
    return value;
}

static inline char *decimal(unsigned value, char end[12])
{
    char *digit = end + 11;

    *digit = 0;
    do
        *--digit = '0' + value % 10;
    while (value /= 10);
    return digit;
}

static inline int status_of(int status)
{
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static inline void await(pid_t pid)
{
    while (pid > 0 && waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
}

static inline char *netns_of(pid_t pid, char path[40])
{
    char digits[12];

    strcpy(path, "/proc/");
    strcat(path, decimal(pid, digits));
    return strcat(path, "/ns/net");
}
