/*
 * The three small processes of a subhost, in one static program so that they share their pages:
 *
 *   /.reaper                       pid 1: reaps every child and orphan, ends when none is left
 *   /.reaper --or-dummy            the same, but first starts dummy_service if there is no child
 *   overlay-boot --keep BUILDER NETNS RECORD [COMMAND ARGUMENT...]
 *                                  the keeper, on the main host: waits until the subhost has ended,
 *                                  runs COMMAND, then removes the two files
 *
 * Built by setup.py.  It never allocates and uses no stdio, which keeps it at a few pages.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define DUMMY_PIPE "/run/dummy_service"

static void reap(void)
{
    while (waitpid(-1, NULL, 0) > 0 || errno == EINTR)
        ;
}

static int complain(const char *what)
{
    const char *why = strerror(errno);
    (void)!write(2, what, strlen(what));
    (void)!write(2, ": ", 2);
    (void)!write(2, why, strlen(why));
    (void)!write(2, "\n", 1);
    return 1;
}

/* Stays until something is written to the pipe.  Opened for both directions, so that neither the
 * open waits for a writer nor a writer that writes nothing ends the subhost. */
static int dummy_service(void)
{
    char byte;
    int pipe;

    prctl(PR_SET_NAME, "dummy_service");
    mkdir("/run", 0755);
    if (mkfifo(DUMMY_PIPE, 0600) && errno != EEXIST)
        return complain("dummy_service: cannot make " DUMMY_PIPE);
    pipe = open(DUMMY_PIPE, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (pipe < 0)
        return complain("dummy_service: cannot open " DUMMY_PIPE);
    while (read(pipe, &byte, 1) < 0 && errno == EINTR)
        ;
    unlink(DUMMY_PIPE);
    return 0;
}

static pid_t number(const char *digit)
{
    pid_t value = 0;
    for (; *digit >= '0' && *digit <= '9'; digit++)
        value = value * 10 + (*digit - '0');
    return value;
}

/* The subhost's pid 1 as its record names it ("PID=123", first of all); -1 if the boot failed. */
static pid_t recorded_pid(const char *record)
{
    char text[32] = "";
    int fd = open(record, O_RDONLY | O_CLOEXEC);

    if (fd < 0 || read(fd, text, sizeof text - 1) < 5 || memcmp(text, "PID=", 4))
        return -1;
    close(fd);
    return number(text + 4);
}

static void await(pid_t pid)
{
    while (pid > 0 && waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
}

static int keep(char **argument)
{
    const char *builder = argument[0], *netns = argument[1], *record = argument[2];
    char **command = argument + 3;
    int pinned = -1;

    prctl(PR_SET_NAME, "overlay-keeper");
    await(number(builder));
    if (*command) /* it needs the cables, which go with the namespace */
        pinned = open(netns, O_RDONLY | O_CLOEXEC);
    await(recorded_pid(record));
    if (*command) {
        pid_t child = fork();
        if (child == 0) {
            execv(*command, command);
            _exit(127);
        }
        await(child);
    }
    close(pinned);
    unlink(netns);
    /* The lock on the record, held by an inherited descriptor, is let go last: with this process. */
    unlink(record);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc >= 5 && !strcmp(argv[1], "--keep"))
        return keep(argv + 2);
    if (argc >= 2 && !strcmp(argv[1], "--or-dummy")) {
        pid_t child;
        while ((child = waitpid(-1, NULL, WNOHANG)) > 0)
            ;
        if (child < 0 && errno == ECHILD && fork() == 0) {
            memset(argv[0], 0, strlen(argv[0]) + 1 + strlen(argv[1]));
            strcpy(argv[0], "dummy_service"); /* what ps shows; the two words are longer */
            return dummy_service();
        }
    }
    reap();
    return 0;
}
