"""python3 drive.py COMMAND...: run a command on a new terminal and type at it.

Runs on the target, by itself. Standard input is a JSON list of steps; standard output becomes JSON:
"screen", all that the command printed, "status", its exit status as a shell shows it, or -1 where
it had to be killed, and "failed", the step that was not fulfilled in time. The steps:

    ["type", text]          as from a keyboard
    ["press", key, seconds] the same, again and again until the command ends
    ["see", text, seconds]  wait until text is printed, after what was seen before
    ["paste", count]        count bytes in lines, read back at the same time as they are echoed
    ["size", rows, columns] change the window
    ["kill", signal, file]  a signal to the process whose pid is in the file
    ["hang up"]             close the terminal
    ["wait", seconds]       do nothing, and read nothing
    ["end", seconds]        wait for the end
"""

# mypy: ignore-errors

import fcntl
import json
import os
import pty
import select
import signal
import struct
import sys
import termios
import time


class Driver:
    def __init__(self, command):
        self.screen = b""
        self.seen = 0
        self.status = None
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            # As at a login, also where this runs as a job in the background of a script.
            for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            os.execvp(command[0], command)
        self.resize(24, 80)

    def read(self, seconds):
        if select.select([self.terminal], [], [], seconds)[0]:
            try:
                data = os.read(self.terminal, 65536)
            except OSError:
                data = b""
            self.screen += data
            return bool(data)
        return True

    def type(self, text):
        data = text.encode()
        deadline = time.monotonic() + 60
        os.set_blocking(self.terminal, False)
        while data and time.monotonic() < deadline:
            readable, writable, _ = select.select([self.terminal], [self.terminal], [], 1)
            if readable:
                self.read(0)
            if writable:
                try:
                    data = data[os.write(self.terminal, data[:1024]) :]
                except BlockingIOError:
                    pass
        os.set_blocking(self.terminal, True)
        return not data

    def press(self, key, seconds):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.type(key) and self.end(0.5):
                return True
        return False

    def paste(self, count):
        return self.type("".join(f"{n:09}\n" for n in range(count // 10)))

    def see(self, text, seconds):
        deadline = time.monotonic() + seconds
        while (at := self.screen.find(text.encode(), self.seen)) < 0:
            if time.monotonic() > deadline or not self.read(0.1):
                return False
        self.seen = at + len(text.encode())
        return True

    def size(self, rows, columns):
        self.resize(rows, columns)
        return True

    def resize(self, rows, columns):
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def kill(self, name, file):
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                with open(file) as pid:
                    os.kill(int(pid.read()), getattr(signal, name))
                return True
            except (FileNotFoundError, ValueError):  # not written yet
                time.sleep(0.1)
            except ProcessLookupError:
                break
        return False

    def hang_up(self):
        os.close(self.terminal)
        self.terminal = os.open("/dev/null", os.O_RDWR)
        return True

    def wait(self, seconds):
        time.sleep(seconds)
        return True

    def end(self, seconds):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                code = os.waitstatus_to_exitcode(status)
                self.status = code if code >= 0 else 128 - code
                while select.select([self.terminal], [], [], 0.2)[0] and self.read(0):
                    pass
                return True
            self.read(0.05)
        return False


def main():
    driver = Driver(sys.argv[1:])
    failed = None
    for name, *words in json.load(sys.stdin):
        if not getattr(driver, name.replace(" ", "_"))(*words):
            failed = [name, *words]
            break
    if driver.status is None and not driver.end(0.5):
        os.killpg(driver.pid, signal.SIGKILL)
        driver.status = -1
    screen = driver.screen.decode(errors="replace")
    print(json.dumps({"status": driver.status, "failed": failed, "screen": screen}))


main()
