"""Torture: a boot, an end and a stop, killed or failing at each of their system calls in turn.

    calls.py       which system calls, and with what errors each may fail
    launch.py      starts a command whose calls are all told to the supervisor (seccomp_unotify(2))
    supervisor.py  numbers the calls of all processes, and kills or fails one of them
    scenes.py      the configurations that are tried
    world.py       what is there: processes, mounts, interfaces, names, records, cgroups, files
    worker.py      tries points, one after the other, in a sandbox of its own
    __main__.py    python -m tests.torture: plans the points, hands them out, reports

Strace's own fault injection is not enough here: it counts calls by process, so that it hits every
process of a boot at once, and it cannot be detached from what stays running.
"""
