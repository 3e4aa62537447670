"""Load and a bad day: many subhosts, many processes, no room, no memory, another LOWER (make load).

python -m tests.load --part 0.01     each trial in small
python -m tests.load --only crowd    500 subhosts, of which each has a cable
"""
