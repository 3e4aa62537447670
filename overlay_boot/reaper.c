/*
 * The small processes around a subhost, in one static program so that they share their pages:
 *
 *   inside     /.reaper [--or-dummy]        pid 1 once the services have been started
 *              /.reaper --start SERVICE...  starts the services of START for pid 1's script
 *   outside    overlay-boot --keep ...      the keeper: waits for the end and clears up after it
 *   in between overlay-boot --run SCRIPT    pid 1 on its way to the script of INIT
 *              overlay-boot --enter ...     brings a command of overlay-go or overlay-stop inside
 *
 * Built by setup.py.  The processes that stay never allocate, which keeps them at a few pages.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define DUMMY_PIPE "/run/dummy_service"
#define CANNOT 125 /* the exit status that says: the command was not even tried */

static void say(int fd, const char *first, const char *second, const char *third)
{
    char line[512] = "";

    strncat(line, first, 200);
    strncat(line, second, 200);
    strncat(line, third, 100);
    strcat(line, "\n");
    (void)!write(fd, line, strlen(line));
}

static const char *self; /* the command that this works for, as its messages begin */

static int complain(const char *what)
{
    const char *why = strerror(errno);

    (void)!write(2, self, strlen(self));
    (void)!write(2, ": ", 2);
    say(2, what, ": ", why);
    return 1;
}

static pid_t number(const char *digit)
{
    pid_t value = 0;

    for (; *digit >= '0' && *digit <= '9'; digit++)
        value = value * 10 + (*digit - '0');
    return value;
}

static char *decimal(unsigned value, char end[12])
{
    char *digit = end + 11;

    *digit = 0;
    do
        *--digit = '0' + value % 10;
    while (value /= 10);
    return digit;
}

static int status_of(int status)
{
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static void await(pid_t pid)
{
    while (pid > 0 && waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
}

/* Wait for a child for so many seconds, then end it and its process group. */
static int await_or_kill(pid_t child, int seconds)
{
    struct pollfd ended = {.fd = syscall(SYS_pidfd_open, child, 0), .events = POLLIN};
    int late = ended.fd >= 0 && poll(&ended, 1, seconds * 1000) == 0;

    if (late)
        kill(-child, SIGKILL);
    await(child);
    close(ended.fd);
    return late;
}

/* ---- pid 1, the reaper */

static void sleep_ms(long milliseconds)
{
    struct timespec pause = {milliseconds / 1000, milliseconds % 1000 * 1000000};

    nanosleep(&pause, NULL);
}

/* Ends when no process is left in the pid namespace (overlay-boot(8), reaper-end).  Those that
 * overlay-go brought in are nobody's children here: kill(2) with -1 tells whether there are any, and
 * there is nothing but looking again to learn of their end. */
static int reap(void)
{
    long pause = 1;

    for (;;) {
        while (waitpid(-1, NULL, 0) > 0 || errno == EINTR)
            pause = 1;
        if (getpid() != 1 || (kill(-1, 0) && errno == ESRCH))
            return 0;
        sleep_ms(pause);
        if (pause < 200)
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
        while ((child = fork()) < 0 && tries--)
            sleep_ms(100);
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
        child = fork();
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
        if (status && !told) {
            char line[300] = "overlay-boot: start of ";
            strncat(line, *service, 200);
            say(2, line, " failed: exit status ", decimal(status_of(status), digits));
        }
    }
    return 0;
}

/* ---- the way into a script of INIT, and into a running subhost */

/* A session keyring of its own, so that the caller's keys stay his (pid1-limits). */
static void new_keyring(void)
{
    syscall(SYS_keyctl, 1 /* KEYCTL_JOIN_SESSION_KEYRING */, NULL);
}

/* What a service has at the start of a machine, whatever the caller's shell had: priorities, and
 * the kernel's own limits, but for the number of files that services may raise theirs to. */
static void fresh(void)
{
    static const struct { int what; rlim_t soft, hard; } limits[] = {
        {RLIMIT_CPU, RLIM_INFINITY, RLIM_INFINITY}, {RLIMIT_FSIZE, RLIM_INFINITY, RLIM_INFINITY},
        {RLIMIT_DATA, RLIM_INFINITY, RLIM_INFINITY}, {RLIMIT_STACK, 8 << 20, RLIM_INFINITY},
        {RLIMIT_CORE, 0, RLIM_INFINITY}, {RLIMIT_RSS, RLIM_INFINITY, RLIM_INFINITY},
        {RLIMIT_NOFILE, 1024, 524288},
        {RLIMIT_MEMLOCK, 8 << 20, 8 << 20}, {RLIMIT_AS, RLIM_INFINITY, RLIM_INFINITY},
        {RLIMIT_LOCKS, RLIM_INFINITY, RLIM_INFINITY},
        {RLIMIT_MSGQUEUE, 819200, 819200}, {RLIMIT_NICE, 0, 0}, {RLIMIT_RTPRIO, 0, 0},
        {RLIMIT_RTTIME, RLIM_INFINITY, RLIM_INFINITY},
    };
    const struct sched_param none = {0};
    int adjust = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    int threads = open("/proc/sys/kernel/threads-max", O_RDONLY | O_CLOEXEC);
    char text[16] = "";

    if (read(threads, text, sizeof text - 1) > 0) {
        const rlim_t half = number(text) / 2;
        setrlimit(RLIMIT_NPROC, &(struct rlimit){half, half});
        setrlimit(RLIMIT_SIGPENDING, &(struct rlimit){half, half});
    }
    close(threads);
    for (size_t row = 0; row < sizeof limits / sizeof *limits; row++) {
        struct rlimit limit = {limits[row].soft, limits[row].hard};
        if (setrlimit(limits[row].what, &limit) && !getrlimit(limits[row].what, &limit)) {
            /* Not even root may raise a hard limit everywhere, such as in a container. */
            limit.rlim_cur = limits[row].soft < limit.rlim_max ? limits[row].soft : limit.rlim_max;
            setrlimit(limits[row].what, &limit);
        }
    }
    /* The system call: musl's own function only says that it cannot. */
    syscall(SYS_sched_setscheduler, 0, SCHED_OTHER, &none);
    setpriority(PRIO_PROCESS, 0, 0);
    syscall(SYS_ioprio_set, 1 /* IOPRIO_WHO_PROCESS */, 0, 0);
    (void)!write(adjust, "0", 1);
    close(adjust);
    new_keyring();
}

/* pid 1, in the root of the subhost: descriptor 3 tells the boot why the script does not run, and
 * that it does by closing. */
static int run(char *script)
{
    char *shell[] = {"/bin/sh", "-c", script, "overlay-init", NULL};

    fresh();
    fcntl(3, F_SETFD, FD_CLOEXEC);
    execv(*shell, shell);
    say(3, "cannot run the subhost's /bin/sh", ": ", strerror(errno));
    return 1;
}

static int execute(char **command)
{
    static const char *const shells[] = {"/bin/bash", "/usr/bin/bash", "/bin/sh"};
    char *shell[] = {NULL, NULL};
    const char *home = getenv("HOME");
    int each = 0;

    if (!home || chdir(home)) {
        (void)!chdir("/");
        if (home)
            setenv("HOME", "/", 1);
    }
    while (each < 2 && access(shells[each], X_OK))
        each++;
    *shell = (char *)shells[each];
    if (home)
        setenv("SHELL", *shell, 1);
    if (!*command)
        command = shell;
    execvp(*command, command);
    each = errno == ENOENT ? 127 : 126;
    (void)!write(2, self, strlen(self));
    say(2, ": ", *command, each == 127 ? ": not found in the subhost" : ": cannot be executed");
    return each;
}

/* Who is sent a signal for the command: that alone, or all of its process group where a terminal
 * would send it to all, and when it has to end. */
static pid_t meant(int number, pid_t command)
{
    return number == SIGTERM || number == SIGUSR1 || number == SIGUSR2 ? command : -command;
}

/* At a terminal: inside, the head of the session.  Its child is the command, in a process group of
 * its own and in the foreground.  It hands on the signals that come from outside, and stops when the
 * command does, so that job control outside can follow. */
static int lead(char **command, int terminal)
{
    sigset_t all, none;
    int status = 0, stopped = 0, got;
    pid_t child, found;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_NAME, "overlay-go");
    ioctl(terminal, TIOCSCTTY, 0);
    sigfillset(&all);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &all, NULL);
    child = fork();
    if (child < 0)
        return complain("cannot start a process in the subhost"), CANNOT;
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        setpgid(0, 0);
        tcsetpgrp(terminal, getpid()); /* SIGTTOU is blocked still */
        sigprocmask(SIG_SETMASK, &none, NULL);
        return execute(command);
    }
    setpgid(child, child);
    while ((found = waitpid(child, &status, WNOHANG | WUNTRACED)) == 0 || WIFSTOPPED(status)) {
        if (found == child) {
            stopped = 1;
            kill(getpid(), SIGSTOP);
        }
        got = sigwaitinfo(&all, NULL);
        if (got == SIGCONT && stopped)
            tcsetpgrp(terminal, child);
        if (got == SIGCONT)
            stopped = 0;
        if (got > 0 && got != SIGCHLD)
            kill(meant(got, child), got == SIGALRM ? SIGKILL : got);
    }
    return status_of(status);
}

/* Inside, the child of the process in between. */
static int inside(const char *how, char **command, int terminal)
{
    sigset_t none;

    new_keyring();
    if (!strcmp(how, "--terminate")) { /* stop-term; SIGCONT for those that are stopped */
        kill(-1, SIGTERM);
        kill(-1, SIGCONT);
        return 0;
    }
    setsid();
    if (terminal >= 0 && !strcmp(how, "--enter"))
        return lead(command, terminal);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    while (!strcmp(how, "--hold"))
        pause(); /* all that it is for is to be there (stop-services) */
    return execute(command);
}

#define GRACE 2000 /* milliseconds after SIGHUP */

static long now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

static void wake(int number)
{
    (void)number;
}

/* Between outside and inside, and seen from neither.  Descriptor 3 is pid 1's pidfd.  From 4 it
 * reads numbers of signals for the command; the end of 4, also that of a caller who was killed, is
 * the command's too: SIGHUP, then SIGKILL (go-killed).  It writes to 5 when the command has stopped.
 * 6 is the cgroup.procs of the subhost, 7 the caller's terminal, if there are such. */
static int enter(const char *how, char **command)
{
    static const int kinds = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWPID;
    struct pollfd control = {.fd = 4, .events = POLLIN};
    sigset_t child_only, none;
    int status = 0, terminal = 0, ending = 0;
    long deadline = 0, left;
    struct timespec pause;
    struct termios before;
    int restore = !tcgetattr(7, &before);
    pid_t leader, group, found;

    (void)!write(5, "r", 1); /* the terminal may be changed now: it can be put right */
    (void)!write(6, "0", 1);
    close(6);
    if (setns(3, kinds))
        return complain("cannot enter the subhost"), CANNOT;
    (void)!chdir("/");
    close(3);
    while (terminal <= 2 && !isatty(terminal))
        terminal++;
    if (terminal > 2)
        terminal = -1;
    sigemptyset(&none);
    sigemptyset(&child_only);
    sigaddset(&child_only, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child_only, NULL);
    signal(SIGCHLD, wake);
    signal(SIGPIPE, SIG_IGN); /* of a caller who was killed */
    leader = fork();
    if (leader < 0)
        return complain("cannot start a process in the subhost"), CANNOT;
    if (leader == 0) {
        close(4);
        close(5);
        close(7);
        signal(SIGCHLD, SIG_DFL);
        signal(SIGPIPE, SIG_DFL);
        return inside(how, command, terminal);
    }
    group = terminal < 0 ? -leader : leader; /* who hands it on to the group of the command */
    while ((found = waitpid(leader, &status, WNOHANG | WUNTRACED)) == 0 || WIFSTOPPED(status)) {
        unsigned char signals[64];
        ssize_t length;

        if (found == leader)
            (void)!write(5, "s", 1);
        control.revents = 0;
        left = deadline - now();
        left = left > 0 ? left : 0;
        pause = (struct timespec){left / 1000, left % 1000 * 1000000};
        ppoll(&control, ending ? 0 : 1, ending ? &pause : NULL, &none);
        /* However often the leader is stopped and continued meanwhile. */
        if (ending && now() >= deadline) {
            kill(ending == 1 ? group : leader, ending == 1 && terminal >= 0 ? SIGALRM : SIGKILL);
            ending = 2;
            deadline = now() + GRACE;
        }
        if (!control.revents)
            continue;
        length = read(4, signals, sizeof signals);
        for (ssize_t each = 0; each < length; each++)
            if (kill(terminal < 0 ? meant(signals[each], leader) : leader, signals[each]))
                kill(leader, signals[each]); /* it is not the head of its group yet */
        if (length == 0) {
            ending = 1;
            deadline = now() + GRACE;
            if (restore)
                tcsetattr(7, TCSANOW, &before);
            kill(group, SIGHUP);
            kill(group, SIGCONT);
        }
    }
    return status_of(status);
}

/* ---- the keeper */

static int same_file(int fd, const char *path)
{
    struct stat one, other;

    return !fstat(fd, &one) && !lstat(path, &other) && one.st_ino == other.st_ino
        && one.st_dev == other.st_dev;
}

static char *netns_of(pid_t pid, char path[40])
{
    char digits[12];

    strcpy(path, "/proc/");
    strcat(path, decimal(pid, digits));
    return strcat(path, "/ns/net");
}

static int leads_to(const char *name, pid_t pid)
{
    char wanted[40], found[40] = "";

    return readlink(name, found, sizeof found - 1) > 0 && !strcmp(found, netns_of(pid, wanted));
}

/* Whether a process is in the network namespace still, such as one of `ip netns exec`: without any
 * the cables go with the namespace, and faster. */
static int is_used(int netns)
{
    char path[300] = "/proc/self/fd/", digits[12], wanted[64] = "", found[64];
    DIR *processes = opendir("/proc");
    struct dirent *each;
    int used = 0;

    strcat(path, decimal(netns, digits));
    (void)!readlink(path, wanted, sizeof wanted - 1);
    while (processes && !used && (each = readdir(processes))) {
        memset(found, 0, sizeof found);
        strcpy(path, "/proc/");
        strcat(path, each->d_name);
        strcat(path, "/ns/net");
        used = number(each->d_name) && readlink(path, found, sizeof found - 1) > 0
            && !strcmp(found, wanted);
    }
    return used;
}

/* Delete every cable by its end in the subhost's own network namespace: nothing of the main host's
 * can be met there (end-cables). */
static void delete_cables(int netns)
{
    struct { /* netlink(7), rtnetlink(7); musl comes without the kernel's headers */
        unsigned length;
        unsigned short type, flags;
        unsigned sequence, port;
        unsigned char family, pad;
        unsigned short device;
        int index;
        unsigned up, change;
    } request = {.length = sizeof request, .type = 17 /* RTM_DELLINK */, .flags = 5 /* and ACK */};
    struct if_nameindex *list;
    char answer[512];
    int route;

    if (setns(netns, CLONE_NEWNET))
        return;
    route = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0 /* NETLINK_ROUTE */);
    for (list = if_nameindex(); list && list->if_index; list++) {
        request.index = list->if_index;
        if (send(route, &request, sizeof request, 0) > 0)
            (void)!recv(route, answer, sizeof answer, 0);
    }
}

/* With the cgroups in it; processes that have just ended keep one for a moment.  Whether it is gone. */
static int remove_cgroup(const char *path)
{
    char below[PATH_MAX];
    DIR *folder = opendir(path);
    struct dirent *each;
    int tries = 200, failed;

    while (folder && (each = readdir(folder)))
        if (each->d_type == DT_DIR && *each->d_name != '.') {
            strcpy(below, path);
            strncat(strcat(below, "/"), each->d_name, sizeof below - strlen(path) - 2);
            remove_cgroup(below);
        }
    if (folder)
        closedir(folder);
    while ((failed = rmdir(path)) && errno == EBUSY && tries--)
        sleep_ms(5);
    return !failed || errno == ENOENT;
}

/* Its arguments: the builder's pid, the record, the name of the network namespace, the cgroup
 * or "", the seconds for the ifdown command, and that, if there is any.  Descriptor 3 is the
 * record, with its lock: that is let go last,
 * with this process.  A name is removed only where it still leads to what this boot made. */
static int keep(char **argument)
{
    pid_t builder = number(argument[0]), pid = 0, child;
    const char *record = argument[1], *netns = argument[2], *cgroup = argument[3];
    char **ifdown = argument + 5, text[32] = "", path[40];
    int pinned, clean;

    prctl(PR_SET_NAME, "overlay-keeper");
    await(builder);
    if (pread(3, text, sizeof text - 1, 0) > 0)
        pid = number(text);
    pinned = pid ? open(netns_of(pid, path), O_RDONLY | O_CLOEXEC) : -1;
    await(pid);
    if (*ifdown && pid) {
        child = fork();
        if (child == 0) {
            setsid();
            execv(*ifdown, ifdown);
            return complain(*ifdown), 127;
        }
        if (child > 0 && await_or_kill(child, number(argument[4])))
            say(2, "overlay-boot: ", *ifdown, " did not end in time and was killed");
    }
    if (pinned >= 0) {
        child = fork();
        if (child == 0)
            return is_used(pinned) ? delete_cables(pinned), 0 : 0;
        await(child);
        close(pinned);
    }
    /* A record that stays without a lock tells overlay-stop and the next boot to go on here. */
    clean = !(leads_to(netns, pid) || leads_to(netns, builder)) || !unlink(netns);
    clean &= !*cgroup || remove_cgroup(cgroup);
    if (clean && same_file(3, record))
        unlink(record);
    return 0;
}

int main(int argc, char **argv)
{
    const char *role = argc > 1 ? argv[1] : "";

    self = argc > 0 ? argv[0] : "";
    if (!strcmp(role, "--keep") && argc >= 7)
        return keep(argv + 2);
    if (!strcmp(role, "--run") && argc == 3)
        return run(argv[2]);
    if (!strcmp(role, "--enter") || !strcmp(role, "--hold") || !strcmp(role, "--terminate"))
        return enter(role, argv + 2);
    if (!strcmp(role, "--start"))
        return start(argv + 2);
    return strcmp(role, "--or-dummy") ? reap() : reap_or_dummy(argv);
}
