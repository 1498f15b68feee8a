"""What the benches share: rounds in which the contenders take turns, medians with their spread, and ratios taken within a round."""
import statistics
import time


def percentiles(
    values,  # list of numbers, one or more
):  # median, 10th and 90th percentile
    "Median, p10 and p90, between the nearest two values where the place falls between them."
    ordered = sorted(values)

    def at(share):
        place = share * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    return statistics.median(ordered), at(0.1), at(0.9)


def interleave(
    contenders,  # name: a function that prepares one run and returns the function to be timed
    rounds,  # how many times each is timed
    warmup=1,  # rounds before that, not counted
    clock=time.perf_counter,  # time.process_time on a machine that others use: what this process computed, not what it waited
):  # name: list of seconds, one a round
    """Every round runs every contender once; each round begins with another, so that no one always follows the same neighbour.

    A machine that is slow for a while is then slow for all of them.
    """
    names, seconds = list(contenders), {name: [] for name in contenders}
    for turn in range(-warmup, rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            run = contenders[name]()
            begin = clock()
            run()
            if turn >= 0: seconds[name].append(clock() - begin)
    return seconds


def ratios(
    values,  # list of numbers, one a round
    others,  # the same, of what it is compared with
):  # median, p10 and p90 of value / other
    "The ratio of two contenders within each round: what slows a whole round cancels."
    return percentiles([value / other for value, other in zip(values, others, strict=True)])


def spread(
    found,  # median, p10, p90
    fmt="{:.0f}",
):
    "For a table: `95 (84-129)`."
    median, low, high = (fmt.format(value) for value in found)
    return f"{median} ({low}-{high})"


def verdict(
    found,  # the number measured
    budget,  # the number allowed
    at_least=False,  # the budget is a lower limit
):
    "The number beside its budget, in words."
    held = found >= budget if at_least else found <= budget
    return f"{found:.2f}, budget {'at least' if at_least else 'at most'} {budget:g}: {'held' if held else 'MISSED'}"
