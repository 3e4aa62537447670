/*
 * What works for a moment in the life of a subhost and needs no interpreter, in a static program:
 *
 *   overlay-boot --run SCRIPT    pid 1 on its way to the script of INIT
 *   overlay-boot --clear ...     the keeper (reaper.c) at the end: what has to go with pid 1
 *   overlay-go --enter ...       brings a command of overlay-go or overlay-stop inside
 *
 * Built by setup.py.
 */
#include "common.h"

#include <dirent.h>
#include <limits.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <termios.h>
#include <time.h>

#define CANNOT 125 /* the exit status that says: the command was not even tried */

#ifndef SYS_clone3
#define SYS_clone3 435
#endif
#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442
#endif

/* ---- the way into a script of INIT, and into a running subhost */

/* A session keyring of its own, so that the caller's keys stay his (pid1-limits). */
static void new_keyring(void)
{
    syscall(SYS_keyctl, 1 /* KEYCTL_JOIN_SESSION_KEYRING */, NULL);
}

static unsigned long long hexadecimal(const char *digit)
{
    unsigned long long value = 0;

    for (; (*digit >= '0' && *digit <= '9') || (*digit >= 'a' && *digit <= 'f'); digit++)
        value = value * 16 + (*digit <= '9' ? *digit - '0' : *digit - 'a' + 10);
    return value;
}

/* From now on this process has no capability but these, whatever it executes, and hands none on by
 * itself.  One that the kernel does not know is no matter (kernel-capabilities). */
static int keep_only(unsigned long long kept)
{
    struct { unsigned version; int pid; } header = {0x20080522, 0};
    struct { unsigned effective, permitted, inheritable; } sets[2]; /* capget(2) */

    for (int each = 0; each < 64; each++)
        if (!(kept >> each & 1) && prctl(PR_CAPBSET_READ, each) == 1
            && prctl(PR_CAPBSET_DROP, each))
            return -1;
    if (syscall(SYS_capget, &header, sets))
        return -1;
    for (int half = 0; half < 2; half++) {
        sets[half].effective &= kept >> 32 * half;
        sets[half].permitted &= kept >> 32 * half;
        sets[half].inheritable = 0;
    }
    return syscall(SYS_capset, &header, sets);
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

    if (threads >= 0 && read(threads, text, sizeof text - 1) > 0) {
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
    if (adjust >= 0)
        (void)!write(adjust, "0", 1);
    close(adjust);
    new_keyring();
}

/* pid 1, in the root of the subhost: descriptor 3 tells the boot why the script does not run, and
 * that it does by closing. */
static int run(const char *kept, char *script)
{
    char *shell[] = {"/bin/sh", "-c", script, "overlay-init", NULL};
    const char *what = "cannot give up capabilities";

    fresh();
    fcntl(3, F_SETFD, FD_CLOEXEC);
    if (!keep_only(hexadecimal(kept))) {
        what = "cannot run the subhost's /bin/sh";
        execv(*shell, shell);
    }
    say(3, what, ": ", errno != ENOEXEC ? strerror(errno)
        : "it is not of this machine's architecture: install qemu-user-static to run others");
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
    if (!strcmp(how, "terminate")) { /* stop-term; SIGCONT for those that are stopped */
        kill(-1, SIGTERM);
        kill(-1, SIGCONT);
        return 0;
    }
    setsid();
    if (terminal >= 0 && !strcmp(how, "enter"))
        return lead(command, terminal);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    while (!strcmp(how, "hold"))
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

/* pid 1's bounding set, which is the subhost's own, from descriptor 8: its status in the main host's
 * /proc.  The one inside could be covered by anything.  0 where it cannot be told. */
static unsigned long long bounds(void)
{
    static const char wanted[] = "\nCapBnd:\t";
    char part[1024], value[17] = "";
    unsigned matched = 0, taken = 0;
    ssize_t length;

    while ((length = read(8, part, sizeof part)) > 0)
        for (ssize_t each = 0; each < length; each++)
            if (wanted[matched]) /* of which only the first character can begin it anew */
                matched = part[each] == wanted[matched] ? matched + 1 : part[each] == *wanted;
            else if (taken < sizeof value - 1)
                value[taken++] = part[each];
    return taken == sizeof value - 1 ? hexadecimal(value) : 0;
}

static volatile pid_t first; /* written by a process that shares the memory */

/* In between: whether this is the first process inside, which it starts as a child of its parent.  Only
 * these two join the cgroup: a frozen or full one does not hold up the signals of who controls them. */
static int is_first(void)
{
    static const int kinds = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWPID
        | CLONE_NEWCGROUP; /* which is the main host's where pid 1 has made none */
    unsigned long long sibling[8] = {CLONE_PARENT}; /* struct clone_args, clone(2) */
    const unsigned long long kept = bounds();

    (void)!write(6, "0", 1);
    close(4);
    close(5);
    close(6);
    close(7);
    close(8);
    errno = EPERM;
    if (!kept || setns(3, kinds) || keep_only(kept)) { /* setns(2) changes folder, too */
        complain("cannot enter the subhost");
        return 0;
    }
    close(3);
    first = syscall(SYS_clone3, sibling, sizeof sibling);
    if (first < 0)
        complain("cannot start a process in the subhost");
    return first == 0;
}

/* The first process inside; 0 for that one itself.  It is born with the subhost's capabilities and no
 * descriptor but 0, 1 and 2: whoever looks at it there, at whatever moment, finds nothing more. */
static pid_t start_inside(void)
{
    pid_t between;

    first = -1;
    between = vfork();
    if (between == 0) {
        if (!is_first())
            _exit(0);
        return 0;
    }
    await(between);
    return first;
}

/* Outside, and seen from inside by nobody.  Descriptor 3 is pid 1's pidfd, 8 its status.  From 4 it
 * reads numbers of signals for the command; the end of 4, also that of a caller who was killed, is
 * the command's too: SIGHUP, then SIGKILL (go-killed).  It writes to 5 when the command has stopped.
 * 6 is the cgroup.procs of the subhost, 7 the caller's terminal, if there are such. */
static int enter(const char *how, char **command)
{
    struct pollfd control = {.fd = 4, .events = POLLIN};
    sigset_t child_only, none;
    int status = 0, terminal = 0, ending = 0;
    long deadline = 0, left;
    struct timespec pause;
    struct termios before;
    int restore = !tcgetattr(7, &before);
    pid_t leader, group, found;

    (void)!write(5, "r", 1); /* the terminal may be changed now: it can be put right */
    while (terminal <= 2 && !isatty(terminal))
        terminal++;
    if (terminal > 2)
        terminal = -1;
    sigemptyset(&none);
    sigemptyset(&child_only);
    sigaddset(&child_only, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child_only, NULL);
    leader = start_inside();
    if (leader < 0)
        return CANNOT;
    if (leader == 0)
        return inside(how, command, terminal);
    signal(SIGCHLD, wake);
    signal(SIGPIPE, SIG_IGN); /* of a caller who was killed */
    if (!strcmp(how, "hold"))
        (void)!write(5, "i", 1); /* from now on the subhost has a process */
    close(3);
    close(6);
    close(8);
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

/* Execute this very program again, by a mount of its file that is read-only and in no namespace. What
 * root inside can reach by /proc/PID/exe is then no way to write to the main host's file
 * (go-program). */
static int enter_read_only(char **argv)
{
    unsigned long long read_only[4] = {1 /* MOUNT_ATTR_RDONLY */}; /* mount_setattr(2) */
    const int flags = 1 /* OPEN_TREE_CLONE */ | O_CLOEXEC;
    int file = syscall(SYS_open_tree, AT_FDCWD, "/proc/self/exe", flags);

    argv[1] += 2;
    if (file >= 0 && !syscall(SYS_mount_setattr, file, "", AT_EMPTY_PATH, read_only, sizeof read_only))
        syscall(SYS_execveat, file, "", argv, environ, AT_EMPTY_PATH);
    return complain("cannot enter the subhost"), CANNOT;
}

/* ---- the end of the keeper */

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

static int same_file(int fd, const char *path)
{
    struct stat one, other;

    return !fstat(fd, &one) && !lstat(path, &other) && one.st_ino == other.st_ino
        && one.st_dev == other.st_dev;
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
    for (list = if_nameindex(); route >= 0 && list && list->if_index; list++) {
        request.index = list->if_index;
        if (send(route, &request, sizeof request, 0) > 0)
            (void)!recv(route, answer, sizeof answer, 0);
    }
    close(route);
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
        usleep(5000);
    return !failed || errno == ENOENT;
}

/* Its arguments: the builder's pid, the record, the name of the network namespace, the cgroup or
 * "", whether there are cables, the seconds for the ifdown command, and that, if there is any.
 * Descriptors as in reaper.c, "keep".  A name is removed only where it still leads to what this
 * boot made. */
static int clear(char **argument)
{
    pid_t builder = number(argument[0]), pid = 0, child;
    const char *record = argument[1], *netns = argument[2], *cgroup = argument[3];
    char **ifdown = argument + 6, text[32] = "";
    int clean;

    prctl(PR_SET_NAME, "overlay-keeper");
    close(6); /* UPPER and WORK, with their locks */
    close(7);
    fcntl(3, F_SETFD, FD_CLOEXEC); /* nothing that ifdown leaves running may hold the lock */
    fcntl(5, F_SETFD, FD_CLOEXEC);
    if (pread(3, text, sizeof text - 1, 0) > 0)
        pid = number(text);
    if (*ifdown && pid) {
        child = fork();
        if (child == 0) {
            setsid();
            execv(*ifdown, ifdown);
            return complain(*ifdown), 127;
        }
        if (child > 0 && await_or_kill(child, number(argument[5])))
            say(2, "overlay-boot: ", *ifdown, " did not end in time and was killed");
    }
    if (*argument[4]) {
        child = fork();
        if (child == 0)
            return is_used(5) ? delete_cables(5), 0 : 0;
        await(child);
        close(5);
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
    if (!strcmp(role, "--clear") && argc >= 8)
        return clear(argv + 2);
    if (!strcmp(role, "--run") && argc == 4)
        return run(argv[2], argv[3]);
    if (!strcmp(role, "--enter") || !strcmp(role, "--hold") || !strcmp(role, "--terminate"))
        return enter_read_only(argv);
    if (!strcmp(role, "enter") || !strcmp(role, "hold") || !strcmp(role, "terminate"))
        return enter(role, argv + 2);
    say(2, self, ": this program works for overlay-boot", " and its commands only");
    return 2;
}
