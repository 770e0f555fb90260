"""log.jsonl and TensorBoard: what a run notes of itself while it trains."""

import json
import time

from ignite.engine import Engine, Events

from meddiff.engines.budget import Budget
from meddiff.engines.run import Run

EVERY = 10  # steps


def write_log(run: Run, engine: Engine, last: int, budget: Budget | None = None) -> None:
    """Attach the mean loss of the last steps, the rate, and the held-out loss when it is new; `last` is the final step.

    Of a private run also the epsilon that is spent.
    """
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run.tensorboard), purge_step=engine.state.iteration + 1)
    losses: list[float] = []
    noted: list[float | None] = [None]  # the held-out loss that is in the log already; it stays for others to show
    began = [time.monotonic()]
    reckoned = max(EVERY, last // 100 // EVERY * EVERY)  # steps between two of epsilon, which may take a second

    def note(engine: Engine) -> None:
        output: dict[str, float] = engine.state.output  # type: ignore[assignment]
        losses.append(output["loss"])
        step = engine.state.iteration
        if step % EVERY and step != last:
            return
        now = time.monotonic()
        rate = len(losses) / max(now - began[0], 1e-9)
        record = {"step": step, "loss": sum(losses) / len(losses), "lr": output["lr"], "grad_norm": output["grad_norm"]}
        engine.state.metrics["loss"] = record["loss"]
        if budget is not None and (step % reckoned == 0 or step == last):
            record["epsilon"] = engine.state.metrics["epsilon"] = budget.epsilon
        if output["skipped"]:
            record["skipped"] = output["skipped"]
        if engine.state.metrics.get("held_out") != noted[0]:
            record["held_out"] = noted[0] = engine.state.metrics["held_out"]
        for name, value in record.items():
            if name != "step":
                writer.add_scalar(name, value, step)
        with run.log_path.open("a") as file:
            file.write(json.dumps({**record, "steps_per_s": rate}) + "\n")
        losses.clear()
        began[0] = now

    engine.add_event_handler(Events.ITERATION_COMPLETED, note)
    engine.add_event_handler(Events.COMPLETED, lambda: writer.close())
