"""What a run will take, before it begins: parameters, FLOPs, memory and time.

forecast.py  estimate(recipe): the counts, and the lines that people read
trial.py     the run, tried out with fake tensors for its memory and with real steps for its time
memory.py    records the memory of tensors meanwhile
devices.py   published figures of accelerators, and the time and memory of a run on them
"""
