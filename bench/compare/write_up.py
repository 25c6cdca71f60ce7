"""The table and what belongs beside it, as Markdown. Pure."""

from bench.compare.document import Document
from bench.compare.figures import Row, Value, rows_of
from bench.markdown import markdown_table


def table(document: Document) -> str:
    """One row per figure, one column per server, and pdq / the best peer."""
    rows = rows_of(document)
    servers: dict[str, list[str]] = {"16-bit": [], "4-bit": []}
    for column in document.columns:
        if column.server not in servers[column.weights]:
            servers[column.weights].append(column.server)
    header, fill = ["figure"], []
    for weights, names in servers.items():
        if names:
            header += [*names, f"pdq / best {weights} peer"]
            fill.append((weights, names))
    lines = []
    for row in rows:
        line = [row.figure.name + ("" if row.figure.more_is_better else " (less is better)")]
        for weights, names in fill:
            line += [*(_cell(row.values.get(name)) for name in names), _ratio(row, weights)]
        lines.append(line)
    return markdown_table(header, lines)


def write_up(document: Document) -> str:
    """The table, the machine, the servers with their command lines, and what each said."""
    machine = document.machine
    num_rounds = 1 + max((one.round for one in document.attempts), default=0)
    limits = f"TTFT {document.limits.ttft_ms:g} ms and TPOT {document.limits.tpot_ms:g} ms"
    facts = (
        f"Measured {machine.measured_at[:10]} on {machine.num_cores} cores of {machine.cpu_model} "
        f"({', '.join(machine.cpu_features)}), {machine.memory_bytes / 1e9:.0f} GB, Python {machine.python}; "
        f"{num_rounds} round(s), "
        f"{document.took_s / 60:.0f} minutes, client included. A rate is borne when 90 % of its requests are within "
        f"{limits}. Memory is PSS over the process tree. `{document.command}`"
    )
    says = {(one.server, one.model): one.text for one in document.words}
    servers = []
    for column in document.columns:
        versions = ", ".join(f"{name} {version}" for name, version in column.versions.items())
        environment = " ".join(f"{name}={value}" for name, value in column.environment.items())
        said = says.get((column.server, column.model))
        answer = f" Asked for the capital of France it says: {said!r}." if said is not None else ""
        command = f"{environment} {column.command}".strip()
        servers.append(f"- {column.server}, {column.model} ({versions}): `{command}`.{answer}")
    return "\n\n".join([table(document), facts, "\n".join(servers)])


def _cell(value: Value | None) -> str:
    if value is None:
        return "-"
    return _number(value.number) + (f" ({value.note})" if value.note else "")


def _number(number: float) -> str:
    """Three digits, or all before the point."""
    places = 0 if number >= 100 else 1 if number >= 10 else 2
    return f"{number:.{places}f}"


def _ratio(row: Row, weights: str) -> str:
    ratio = row.ratios[weights]
    return "-" if ratio is None else f"{ratio:.2f}"
