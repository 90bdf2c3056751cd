"""The command `edit`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from implicit_reasoning.errors import InputError

if TYPE_CHECKING:
    from implicit_reasoning.runs import Run
    from implicit_reasoning.worlds import World

Arguments = dict[str, Any]


def edit(flags: Arguments, overrides: Arguments) -> None:
    """Run the command `edit`: edit a fact, print what changes, and write it as a page.

    All input is checked before anything is computed or written.
    """
    import jax

    from implicit_reasoning.analysis.editing.edit_effects import measure_effects
    from implicit_reasoning.analysis.editing.edit_summary import console_text
    from implicit_reasoning.analysis.editing.fact_edit import (
        choose_method,
        edit_fact,
        parse_edit,
    )
    from implicit_reasoning.analysis.editing.page import KIND, make_page
    from implicit_reasoning.pages import write_page
    from implicit_reasoning.runs import Run, check_new, save_edited

    run = Run(flags["workdir"])
    new_folder = check_new(flags["save"], "--save") if flags["save"] else None
    world = _editable_world(run)
    wanted = parse_edit(world, flags["fact"], flags["to"])
    method = choose_method(run.model, flags["method"], flags["layer"])
    step = _choose_step(run, flags["step"])

    before = jax.tree.map(lambda stacked: stacked[0], run.params([step]))
    after = edit_fact(run.model, before, run.dataset, wanted, method)
    effects = measure_effects(run.model, before, after, run.dataset, wanted, method)
    print(console_text(effects))
    fact, name = f"e{wanted.head},r{wanted.relation}", method.name.replace(" ", "_")
    blocks = "".join(f"_block{layer}" for layer in method.layers)
    page = f"{fact.replace(',', '_')}_to_e{wanted.new}_{name}{blocks}_step{step}.html"
    if new_folder:
        about = {"fact": fact, "from": f"e{wanted.old}", "to": f"e{wanted.new}", "method": name}
        save_edited(run, new_folder, step, after, {**about, "layers": list(method.layers)})
        print(f"\nsaved: {new_folder}")
    path = run.files.edits / page
    made = make_page(effects, str(run.files.workdir), step, str(new_folder or ""))
    write_page(path, made, KIND)
    print(f"page: {path}")


def _editable_world(run: Run) -> World:
    """Return the world of a run whose facts can be edited.

    Raises:
      InputError: the task or the blocks of the model have another form.
    """
    from implicit_reasoning.analysis import NotApplicable
    from implicit_reasoning.analysis.editing.edit_cases import need_editable
    from implicit_reasoning.model.blocks import require_gpt2

    require_gpt2(run.model.spec, "the command `edit`")
    try:
        return need_editable(run.dataset)
    except NotApplicable as reason:
        raise InputError(
            f"facts of {run.files.workdir} (task {run.config.task.name}) cannot be edited: {reason}"
        ) from None


def _choose_step(run: Run, step: int | None) -> int:
    """Return the step of the flag `--step`; by default the last step with a checkpoint.

    Raises:
      InputError: there is no such checkpoint.
    """
    if not run.steps:
        raise InputError(
            f"{run.files.workdir} contains no checkpoint yet; train until the first checkpoint"
        )
    if step is None:
        return run.steps[-1]
    if step not in run.steps:
        near = sorted(run.steps, key=lambda saved: abs(saved - step))[:3]
        raise InputError(
            f"--step is {step}, but {run.files.workdir} contains no checkpoint of this step; the "
            f"nearest steps with a checkpoint are {', '.join(map(str, sorted(near)))}"
        )
    return step
