/* The guest's end of the command channel: runs one command at a time for the host, over virtio-serial.
 *
 * A frame is type (u8), three zero bytes, id (u32), length (u32), then the payload; little-endian.
 * From the host: R command | I input (empty: its end) | K kill | T seconds, nanoseconds, randomness |
 * P ping. To the host: H hello (answer to P and T, or a fresh start with id 0) | O output |
 * E error output | A bytes of input taken (u32) | X wait status (u32). Frames of another id than the
 * running command's are stale and dropped.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PORT "vm.agent"
#define WINDOW (1 << 20) /* the host never has more unacknowledged input under way */
#define ORPHANS 64       /* outputs that background processes still hold */

struct frame { uint8_t type, zero[3]; uint32_t id, length; };
struct moment { int64_t seconds, nanoseconds; };

static int port;
static uint32_t id;                    /* of the running command */
static pid_t child;                    /* 0: none */
static int pidfd = -1, in = -1, out = -1, err = -1;
static char input[WINDOW], chunk[65536];
static size_t pending;
static int input_ends;
static int orphans[ORPHANS], orphan_count;

static void nap(void) { nanosleep(&(struct timespec){0, 10000000}, NULL); }

static int open_port(void) {
    for (;; nap()) {
        DIR *ports = opendir("/sys/class/virtio-ports");
        for (struct dirent *entry; ports && (entry = readdir(ports));) {
            char path[300], name[64] = "";
            snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
            int fd = open(path, O_RDONLY);
            if (fd < 0) continue;
            ssize_t length = read(fd, name, sizeof name - 1);
            close(fd);
            if (length < 1 || strcmp(name, PORT "\n")) continue;
            snprintf(path, sizeof path, "/dev/%s", entry->d_name);
            if ((fd = open(path, O_RDWR | O_CLOEXEC)) >= 0) {
                closedir(ports);
                return fd;
            }
        }
        if (ports) closedir(ports);
    }
}

static void put(const void *data, size_t length) {
    for (ssize_t n; length; data = (const char *)data + n, length -= n)
        if ((n = write(port, data, length)) < 0) {
            if (errno != EINTR && errno != EAGAIN) exit(1); /* started again by its keeper */
            n = 0;
        }
}

/* Read that much; `inside`: of a frame that has begun. A host that goes away in the middle of one leaves
 * the stream out of step: the next one gets a fresh start. */
static void get(void *data, size_t length, int inside) {
    for (ssize_t n; length; data = (char *)data + n, length -= n)
        if ((n = read(port, data, length)) <= 0) { /* 0: no host just now */
            if ((n < 0 && errno != EINTR && errno != EAGAIN) || (!n && inside)) exit(1);
            n = 0;
            nap();
        } else {
            inside = 1;
        }
}

static void send_frame(char type, uint32_t to, const void *data, uint32_t length) {
    struct frame frame = {type, {0}, to, length};
    char whole[sizeof frame + sizeof chunk];
    memcpy(whole, &frame, sizeof frame);
    if (length) memcpy(whole + sizeof frame, data, length);
    put(whole, sizeof frame + length);
}

static void shut(int *fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

static void start(char *command) {
    int i[2], o[2], e[2];
    if (pipe2(i, O_CLOEXEC) || pipe2(o, O_CLOEXEC) || pipe2(e, O_CLOEXEC)) exit(1);
    if ((child = fork()) < 0) exit(1);
    if (!child) {
        char *environment[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                               "HOME=/root", "USER=root", "LOGNAME=root", "SHELL=/bin/sh",
                               "LANG=C.UTF-8", "TERM=dumb", NULL};
        setsid();
        signal(SIGPIPE, SIG_DFL);
        dup2(i[0], 0), dup2(o[1], 1), dup2(e[1], 2);
        execle("/bin/sh", "sh", "-c", command, NULL, environment);
        _exit(127);
    }
    close(i[0]), close(o[1]), close(e[1]);
    in = i[1], out = o[0], err = e[0];
    fcntl(in, F_SETFL, O_NONBLOCK);
    fcntl(out, F_SETFL, O_NONBLOCK);
    fcntl(err, F_SETFL, O_NONBLOCK);
    pidfd = syscall(SYS_pidfd_open, child, 0);
    if (pidfd < 0) exit(1);
    fcntl(pidfd, F_SETFD, FD_CLOEXEC);
    pending = input_ends = 0;
}

/* Hand on what a pipe holds now; at its end close it. */
static int pass_on(int *fd, char type) {
    ssize_t n = read(*fd, chunk, sizeof chunk);
    if (n > 0) send_frame(type, id, chunk, n);
    if (!n || (n < 0 && errno != EAGAIN && errno != EINTR)) shut(fd);
    return n > 0;
}

/* A background process may hold a pipe on: it is read and dropped, so that it never gets SIGPIPE. */
static void leave(int *fd) {
    if (*fd >= 0 && orphan_count < ORPHANS) orphans[orphan_count++] = *fd, *fd = -1;
    shut(fd);
}

/* Kill the command's group, or the command alone where it has not made one yet. */
static void end(void) {
    if (kill(-child, SIGKILL)) kill(child, SIGKILL);
}

static void finish(void) {
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR);
    while (out >= 0 && pass_on(&out, 'O'));
    while (err >= 0 && pass_on(&err, 'E'));
    leave(&out), leave(&err), shut(&in), shut(&pidfd);
    child = 0;
    uint32_t word = status;
    send_frame('X', id, &word, sizeof word);
}

static void feed(void) {
    if (pending) {
        ssize_t n = write(in, input, pending);
        if (n < 0 && errno != EAGAIN && errno != EINTR) n = pending, input_ends = 1; /* reads no more */
        if (n > 0) {
            uint32_t taken = n;
            memmove(input, input + n, pending -= n);
            send_frame('A', id, &taken, sizeof taken);
        }
    }
    if (!pending && input_ends) shut(&in);
}

static void set_clock_and_entropy(char *data, uint32_t length) {
    struct moment moment;
    struct { struct rand_pool_info info; char bytes[256]; } pool;
    memcpy(&moment, data, sizeof moment);
    clock_settime(CLOCK_REALTIME, &(struct timespec){moment.seconds, moment.nanoseconds});
    length -= sizeof moment;
    if (length > sizeof pool.bytes) length = sizeof pool.bytes;
    pool.info.entropy_count = 8 * length;
    pool.info.buf_size = length;
    memcpy(pool.info.buf, data + sizeof moment, length);
    int fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, RNDADDENTROPY, &pool) || ioctl(fd, RNDRESEEDCRNG)) perror("entropy");
    shut(&fd);
}

static void handle(void) {
    static char payload[WINDOW + 1];
    struct frame frame;
    get(&frame, sizeof frame, 0);
    if (frame.length > WINDOW) exit(1); /* out of step */
    get(payload, frame.length, 1);
    payload[frame.length] = 0;
    if (frame.type == 'R') {
        if (child) { /* left by a host that went away */
            end();
            finish();
        }
        id = frame.id;
        start(payload);
    } else if (frame.type == 'K' && child) {
        end();
    } else if (frame.type == 'I' && child && frame.id == id && in >= 0) {
        if (frame.length > WINDOW - pending) exit(1);
        memcpy(input + pending, payload, frame.length);
        pending += frame.length;
        if (!frame.length) input_ends = 1;
        feed();
    } else if (frame.type == 'I' && frame.length) { /* nobody reads it: let the host go on */
        send_frame('A', frame.id, &frame.length, sizeof frame.length);
    } else if (frame.type == 'P' || frame.type == 'T') {
        if (frame.type == 'T') set_clock_and_entropy(payload, frame.length);
        send_frame('H', frame.id, NULL, 0);
    }
}

/* An argument is the number of an open descriptor to use in the port's place, for tests. */
int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN);
    if (chdir("/")) return 1;
    port = argc > 1 ? atoi(argv[1]) : open_port();
    fcntl(port, F_SETFD, FD_CLOEXEC);
    send_frame('H', 0, NULL, 0);
    for (;;) {
        struct pollfd fds[5 + ORPHANS] = {{port, POLLIN, 0}, {pidfd, POLLIN, 0}, {out, POLLIN, 0},
                                          {err, POLLIN, 0}, {pending ? in : -1, POLLOUT, 0}};
        int count = orphan_count;
        for (int i = 0; i < count; i++) fds[5 + i] = (struct pollfd){orphans[i], POLLIN, 0};
        if (poll(fds, 5 + count, -1) < 0) continue;
        for (int i = count; i--;)
            if (fds[5 + i].revents && read(orphans[i], chunk, sizeof chunk) == 0) {
                close(orphans[i]);
                orphans[i] = orphans[--orphan_count];
            }
        if (fds[2].revents) pass_on(&out, 'O');
        if (fds[3].revents) pass_on(&err, 'E');
        if (fds[4].revents && in >= 0) feed();
        if (fds[1].revents) finish();
        if (fds[0].revents & POLLIN) handle();
        else if (fds[0].revents) nap(); /* POLLHUP: no host is connected */
    }
}
