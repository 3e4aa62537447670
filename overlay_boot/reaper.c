/*
 * What stays while a subhost runs, in one small static program so that they share its pages:
 *
 *   inside     /.reaper [--or-dummy]        pid 1 once the services have been started
 *              /.reaper --start SERVICE...  starts the services of START for pid 1's script
 *   outside    overlay-boot --keep ...      the keeper: waits for the end of pid 1
 *
 * Built by setup.py.  Nothing here allocates.
 */
#include "common.h"

#include <sys/stat.h>
#include <sys/times.h>

#define DUMMY_PIPE "/run/dummy_service"

/* ---- pid 1, the reaper */

/* Ends when no process is left in the pid namespace (overlay-boot(8), reaper-end).  Those that
 * overlay-go brought in are nobody's children here: kill(2) with -1 tells whether there are any, and
 * there is nothing but looking again to learn of their end. */
static int reap(void)
{
    useconds_t pause = 100;

    for (;;) {
        while (waitpid(-1, NULL, 0) > 0 || errno == EINTR)
            pause = 100;
        if (getpid() != 1 || (kill(-1, 0) && errno == ESRCH))
            return 0;
        usleep(pause);
        if (pause < 200000)
            pause *= 2;
    }
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
        return complain("cannot make " DUMMY_PIPE);
    pipe = open(DUMMY_PIPE, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (pipe < 0)
        return complain("cannot open " DUMMY_PIPE);
    while (read(pipe, &byte, 1) < 0 && errno == EINTR)
        ;
    close(pipe);
    unlink(DUMMY_PIPE);
    return 0;
}

/* Without a process to wait for, first start dummy_service (overlay-boot(8), dummy, dummy-idle).
 * Until that has been possible this is not /.reaper yet, for whoever waits for it by that name. */
static int reap_or_dummy(char **argv)
{
    pid_t child;
    int tries = 50;

    prctl(PR_SET_NAME, "overlay-init");
    while ((child = waitpid(-1, NULL, WNOHANG)) > 0)
        ;
    if (child < 0 && errno == ECHILD) {
        while ((child = _Fork()) < 0 && tries--)
            usleep(100000);
        if (child < 0)
            return complain("cannot start dummy_service, so the subhost ends");
        if (child == 0) {
            memset(argv[0], 0, strlen(argv[0]) + 1 + strlen(argv[1]));
            self = strcpy(argv[0], "dummy_service"); /* what ps shows; the two words are longer */
            return dummy_service();
        }
    }
    prctl(PR_SET_NAME, ".reaper");
    return reap();
}

/* ---- START's services, for the script of the default INIT */

/* times(2) counts hundredths of a second (USER_HZ), and is smaller here than clock_gettime(2). */
static char *seconds_since(unsigned begun, char text[24])
{
    const unsigned hundredths = (unsigned)times(NULL) - begun;
    char digits[12];

    strcpy(text, decimal(hundredths / 100, digits));
    strcat(text, ".");
    strcat(text, decimal(100 + hundredths % 100, digits) + 1); /* always two */
    return strcat(text, " s");
}

static int exec_service(char *service, char *action)
{
    char *by_name[] = {"service", service, action, NULL};
    char *by_path[] = {service, action, NULL};
    char **command = *service == '/' ? by_path : by_name;

    execvp(*command, command);
    complain(*command);
    return 127;
}

/* In order, whatever becomes of each (start, start-failure).  Its name tells overlay-stop how many
 * were begun; SIGTERM ends the one that is being started, and then itself (stop-starting). */
static int start(char **service)
{
    const struct timespec grace = {5, 0}, at_once = {0, 0};
    char digits[12], title[16];
    int begun = 0, status, told = 0;
    unsigned begun_at;
    sigset_t term, wanted, none;

    sigemptyset(&none);
    sigemptyset(&term);
    sigaddset(&term, SIGTERM);
    wanted = term;
    sigaddset(&wanted, SIGCHLD);
    sigprocmask(SIG_BLOCK, &wanted, NULL);
    for (; *service && !told; service++) {
        pid_t child;

        strcpy(title, "starting ");
        strncat(title, decimal(++begun, digits), 6);
        prctl(PR_SET_NAME, title);
        if (sigtimedwait(&term, NULL, &at_once) == SIGTERM)
            break;
        begun_at = times(NULL);
        child = _Fork();
        if (child == 0) {
            setsid();
            sigprocmask(SIG_SETMASK, &none, NULL);
            return exec_service(*service, "start");
        }
        status = 255 << 8;
        while (child > 0 && waitpid(child, &status, WNOHANG) == 0) {
            int got = sigtimedwait(&wanted, NULL, told ? &grace : NULL);
            if (got == SIGTERM)
                kill(-child, told++ ? SIGKILL : SIGTERM);
            else if (got < 0 && errno == EAGAIN)
                kill(-child, SIGKILL);
        }
        if (!told) { /* log-services; overlay-boot --wait reads it */
            char line[300] = "overlay-boot: start of ", how[40] = ": ", took[24];
            strncat(line, *service, 150);
            if (status)
                strcat(strcat(strcpy(how, " failed: exit status "),
                              decimal(status_of(status), digits)), ", after ");
            say(2, line, how, seconds_since(begun_at, took));
        }
    }
    return 0;
}

/* ---- the keeper */

/* Its arguments are those of helper.c's "clear", which it becomes when pid 1 has ended.  Descriptor
 * 3 is the record, with its lock: that is let go last, with this process.  4 is the helper, open so
 * that an upgrade meanwhile does not take it away; 5 will be the network namespace, where cables are
 * in it; 6 and 7 are UPPER and WORK, with their locks. */
static int keep(char **argv)
{
    enum { ENTERED = 32 }; /* where the record's first line says so */
    char text[40] = "", path[40], digits[12];
    pid_t builder = number(argv[2]), pid = 0;
    int netns, status = 0, off;

    prctl(PR_SET_NAME, "overlay-keeper");
    await(builder);
    if (pread(3, text, sizeof text - 1, 0) > 0)
        pid = number(text);
    /* The builder was killed half way: nobody may enter such a pid 1 (records.py). */
    if (pid > 0 && text[ENTERED] != '1' && waitpid(pid, &status, WNOHANG) == 0)
        kill(pid, SIGKILL);
    netns = pid && *argv[6] ? open(netns_of(pid, path), O_RDONLY) : -1;
    if (netns >= 0 && netns != 5) {
        dup2(netns, 5);
        close(netns);
    }
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    /* What reboot(2) inside comes to (pid_namespaces(7)): pid 1 passes over these two otherwise. */
    off = status == SIGINT || status == SIGHUP;
    if (pid) /* log-end */
        say(2, "overlay-boot: the subhost has ended: ",
            off ? "it powered off or rebooted" : WIFSIGNALED(status) ? "pid 1 was killed by signal "
            : "pid 1 ended with exit status ", off ? "" :
            decimal(WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status), digits));
    argv[1] = "--clear";
    syscall(SYS_execveat, 4, "", argv, environ, AT_EMPTY_PATH);
    return complain("cannot clear up"); /* a record without a lock: overlay-stop goes on here */
}

int main(int argc, char **argv)
{
    const char *role = argc > 1 ? argv[1] : "";

    self = argc > 0 ? argv[0] : "";
    if (!strcmp(role, "--keep") && argc >= 8)
        return keep(argv);
    if (!strcmp(role, "--start"))
        return start(argv + 2);
    return strcmp(role, "--or-dummy") ? reap() : reap_or_dummy(argv);
}
