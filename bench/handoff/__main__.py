"""`python -m bench.handoff`: what a handoff takes from the first token to a place in the batch, and what it disturbs.

A real prefill and a real decode worker, CPU shared memory. Idle: one request at a time, so many of each prompt length.
Beside running streams: prompts that arrive while steady streams decode; a step beside which KV arrives is compared with
the others of the same run. The model is the demo's, or with --step-ms a paced one, whose steps sleep and whose KV has
the same shape.
"""

import argparse
import asyncio
import os

from bench.handoff.cluster import HandoffCluster
from bench.handoff.phases import PHASES, Handoff, between_steps_us, handoffs, median, quantile, step_times
from bench.handoff.role import Pace
from messages.worker_status import Role

PROMPT_TOKENS = (32, 512, 1500)


async def idle(cluster: HandoffCluster, prompt_tokens: list[int], count: int) -> dict[int, list[str]]:
    """One after the other, the lengths in turn. Request ids by length."""
    sent: dict[int, list[str]] = {length: [] for length in prompt_tokens}
    for _ in range(count):
        for length in prompt_tokens:
            request_id = await cluster.send(length, 4)
            sent[length].append(request_id)
            await cluster.ended(request_id)
            await asyncio.sleep(0.02)
    return sent


async def beside(cluster: HandoffCluster, prompt_tokens: int, count: int, streams: int) -> None:
    """`count` prompts, while so many streams decode."""
    running = [await cluster.send(32, 8000) for _ in range(streams)]
    await asyncio.sleep(1.0)
    for _ in range(count):
        await cluster.ended(await cluster.send(prompt_tokens, 2))
        await asyncio.sleep(0.1)
    for request_id in running:
        request = await cluster.broker.request_reader.record(request_id)
        assert request is not None
        from broker.deadline import deadline_event

        await cluster.broker.requests.cancel(request, deadline_event(request))
        await cluster.ended(request_id)


def print_idle(lengths: dict[int, list[str]], found: dict[str, Handoff]) -> None:
    """p50 and p99 of the whole and of each phase."""
    print(f"{'idle, ms':<14}{'handoffs':>9}{'total':>16}" + "".join(f"{phase:>16}" for phase in PHASES))
    for length, request_ids in lengths.items():
        some = [found[request_id] for request_id in request_ids[1:] if request_id in found]
        columns = [[one.total_ms for one in some], *([one.phases_ms[phase] for one in some] for phase in PHASES)]
        cells = "".join(f"{quantile(values, 0.5):>8.2f}{quantile(values, 0.99):>8.2f}" for values in columns)
        print(f"{length:>6} tokens{len(some):>10}{cells}", flush=True)


async def run(arguments: argparse.Namespace) -> None:
    """Both parts, each with a cluster of its own."""
    pace = Pace(arguments.step_ms / 1e3, arguments.token_us / 1e6) if arguments.step_ms else None
    settings = dict(pair.split("=", 1) for pair in arguments.set)
    if arguments.model:
        settings["PDQ_MODEL__PATH"] = arguments.model
    what = f"a paced model, {arguments.step_ms:g} ms a step" if pace else "the model's own compute"
    print(f"{what}; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; figures are p50 and p99", flush=True)
    async with HandoffCluster(pace, settings) as cluster:
        lengths = await idle(cluster, arguments.tokens, arguments.count)
    print_idle(lengths, handoffs(cluster.marks[Role.PREFILL], cluster.marks[Role.DECODE]))
    for length in arguments.tokens:
        async with HandoffCluster(pace, settings) as cluster:
            await beside(cluster, length, arguments.count, arguments.streams)
        prefill, decode = cluster.marks[Role.PREFILL], cluster.marks[Role.DECODE]
        times = step_times(prefill, decode, arguments.streams)
        some = [one.total_ms for one in handoffs(prefill, decode).values()][arguments.streams :]
        print(
            f"beside {arguments.streams} streams, {length} tokens: handoff {quantile(some, 0.5):.2f} "
            f"{quantile(some, 0.99):.2f} ms; steps without {quantile(times.without_ms, 0.5):.2f} "
            f"{quantile(times.without_ms, 0.99):.2f} ms ({len(times.without_ms)}), with "
            f"{quantile(times.with_arrival_ms, 0.5):.2f} {quantile(times.with_arrival_ms, 0.99):.2f} ms "
            f"({len(times.with_arrival_ms)}); delay {times.delay_ms(0.5):+.2f} {times.delay_ms(0.99):+.2f} ms; "
            f"between two computations {median(between_steps_us(decode, arguments.streams)):.0f} us",
            flush=True,
        )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=list(PROMPT_TOKENS))
    parser.add_argument("--count", type=int, default=30, help="handoffs of each length")
    parser.add_argument("--streams", type=int, default=4, help="that decode while KV arrives")
    parser.add_argument("--step-ms", type=float, default=0.0, help="a paced model of such steps; 0: the real one")
    parser.add_argument("--token-us", type=float, default=50.0, help="of a prompt, for a paced model")
    parser.add_argument("--model", default="", help="as PDQ_MODEL__PATH; default: the demo model")
    parser.add_argument("--set", nargs="*", default=[], metavar="PDQ_X__Y=Z", help="settings of both workers")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
