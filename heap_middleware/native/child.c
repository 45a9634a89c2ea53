/* Work in a forked child: it reads its copy of the heap, writes the result to a pipe, and is gone.
 *
 * The rules of this file:
 * - The child runs C only, from here to its _exit: no Python fork hooks, no atexit, no buffers flushed. Other threads
 *   held locks at the fork that nobody will ever release in the child: it takes none, and calls nothing that does.
 * - It closes every descriptor but its pipe, at once: a socket that the application closes meanwhile is closed.
 * - All signals are blocked in it; it dies with the thread that made it, and at the deadline.
 * - On Linux the application is never told: a child made without an exit signal sends no SIGCHLD, and only a wait that
 *   asks for such children (__WALL) finds it. A wait for any child, in gunicorn's or asyncio's handlers, does not.
 */
#define _GNU_SOURCE
#include "child.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifdef __linux__
#include <sys/prctl.h>
#include <sys/syscall.h>
#define HF_WAIT __WALL
#else
#define HF_WAIT 0
#endif

#define HF_MOST_DESCRIPTORS 65536
#define HF_WATCHED 0.05 /* seconds from one question to the watch to the next */

typedef struct {
    int fd;
    double until;
    hf_watch watch;
    void *argument;
} hf_reading;

static double hf_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static pid_t hf_fork(void)
{
#if defined(__linux__) && !defined(__sanitize_thread__)
    return (pid_t)syscall(SYS_clone, 0, NULL, NULL, NULL, NULL); /* all zero: the order of the arguments is no matter */
#else
    return fork();
#endif
}

static void hf_close_others(int kept)
{
#ifdef SYS_close_range
    if ((kept == 0 || syscall(SYS_close_range, 0, kept - 1, 0) == 0) &&
        syscall(SYS_close_range, kept + 1, ~0U, 0) == 0) {
        return;
    }
#endif
    long most = sysconf(_SC_OPEN_MAX);
    for (int fd = 0; fd < (most < 0 || most > HF_MOST_DESCRIPTORS ? HF_MOST_DESCRIPTORS : most); fd++) {
        if (fd != kept) {
            close(fd);
        }
    }
}

static void hf_child(hf_work work, void *argument, int fd)
{
#ifdef __linux__
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_DUMPABLE, 0); /* should it crash, it leaves no core file with the application's memory */
#endif
    hf_close_others(fd);
    hc_output output = {.fd = fd};
    _exit(work(argument, &output) < 0 ? 1 : 0);
}

/* Ask the watch, with the lock. */
static int hf_is_cancelled(const hf_reading *reading, const hc_output *output, PyThreadState **thread)
{
    if (reading->watch == NULL) {
        return 0;
    }
    PyEval_RestoreThread(*thread);
    int cancelled = reading->watch(reading->argument, output);
    *thread = PyEval_SaveThread();
    return cancelled;
}

/* Read until the child closes its end. 0, or an errno. */
static int hf_read_all(const hf_reading *reading, hc_output *output, PyThreadState **thread)
{
    int fd = reading->fd;
    double asked = 0;
    for (;;) {
        double now = hf_now(), left = reading->until - now;
        struct pollfd ready = {.fd = fd, .events = POLLIN};
        if (now - asked >= HF_WATCHED) {
            asked = now;
            if (hf_is_cancelled(reading, output, thread)) {
                return ECANCELED;
            }
        }
        double wait = reading->watch != NULL && left > HF_WATCHED ? HF_WATCHED : left;
        if (left <= 0 || poll(&ready, 1, (int)(wait * 1000) + 1) < 0) {
            if (left > 0 && errno == EINTR) {
                continue;
            }
            return left <= 0 ? ETIMEDOUT : errno;
        }
        if (output->length == output->room) {
            size_t room = output->room == 0 ? 65536 : output->room * 2;
            char *data = realloc(output->data, room);
            if (data == NULL) {
                return ENOMEM;
            }
            output->data = data;
            output->room = room;
        }
        if (ready.revents == 0) {
            continue; /* the time is up, or the watch is to be asked */
        }
        ssize_t got = read(fd, output->data + output->length, output->room - output->length);
        if (got == 0) {
            return 0;
        }
        if (got < 0 && errno != EINTR) {
            return errno;
        }
        output->length += got > 0 ? (size_t)got : 0;
    }
}

static int hf_wait(pid_t child)
{
    int status = 0;
    pid_t found;
    do {
        found = waitpid(child, &status, HF_WAIT);
    } while (found < 0 && errno == EINTR);
    return found < 0 ? 0 : status; /* somebody else waited for it: what it wrote tells whether it was done */
}

int hf_run(hf_work work, hf_watch watch, void *argument, double deadline, hc_output *output, hf_report *report)
{
    int ends[2], status;
    sigset_t all, before;
    *report = (hf_report){.where = "pipe"};
    if (pipe(ends) < 0) {
        report->error = errno;
        return -1;
    }
    fcntl(ends[0], F_SETFD, FD_CLOEXEC);
    fcntl(ends[1], F_SETFD, FD_CLOEXEC);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    double began = hf_now();
    pid_t child = hf_fork();
    if (child == 0) {
        hf_child(work, argument, ends[1]);
    }
    report->pause = hf_now() - began;
    report->error = child < 0 ? errno : 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    close(ends[1]);
    if (child < 0) {
        close(ends[0]);
        report->where = "fork";
        return -1;
    }
    hf_reading reading = {.fd = ends[0], .until = began + deadline, .watch = watch, .argument = argument};
    PyThreadState *thread = PyEval_SaveThread();
    report->error = hf_read_all(&reading, output, &thread);
    close(ends[0]);
    if (report->error != 0) {
        kill(child, SIGKILL);
    }
    status = hf_wait(child);
    PyEval_RestoreThread(thread);
    report->where = report->error == ETIMEDOUT ? "deadline" : "read";
    if (report->error == 0 && status != 0) {
        report->error = WIFSIGNALED(status) ? EFAULT : ENOMEM; /* it crashed, or had no memory */
        report->where = "child";
    }
    return report->error == 0 ? 0 : -1;
}

static int hf_take_census(void *argument, hc_output *output)
{
    return hc_census(*(const int *)argument, NULL, output);
}

int hf_census(int reachable, double deadline, hc_output *output, hf_report *report)
{
    return hf_run(hf_take_census, NULL, &reachable, deadline, output, report);
}
