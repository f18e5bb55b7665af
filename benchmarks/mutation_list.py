"""The safeties, and how each is taken out: what ``benchmarks.mutations`` tries.

A mutation is an exact piece of a source file and what stands there instead. The pieces are as short
as they can be while there is only one of them in the file, so that other changes leave them alone.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """A safety, how it is taken out, and the test that has to fail then."""

    safety: str
    """What is taken out."""
    file: str
    """Where it stands, from the root."""
    old: str
    """Text that makes it; the file holds it once."""
    new: str
    """What stands there instead."""
    test: str
    """The test, as ``file::function``."""


ORDER = "tests/rl/test_commit_order.py::"
CHECKPOINT = "tests/rl/test_checkpoint.py::"
JSONL = "tests/experiments/test_jsonl.py::"
GUARDS = "tests/rl/test_update_guards.py::"
SANDBOX = "tests/rewards/test_sandbox.py::"
ISOLATED = "tests/rewards/test_isolated_rewards.py::"
COMBINED = "tests/rewards/test_combined_reward.py::"
CANNOT = f"{COMBINED}test_scores_that_cannot_be_used_are_failures_with_a_reason"
POWER = f"{ORDER}test_a_whole_checkpoint_is_found_whenever_the_power_goes"
FLUSHED = f"{ORDER}test_all_that_a_commit_writes_is_forced_to_the_disk"
ATTACK = f"{SANDBOX}test_no_attack_gets_what_it_wants"
REDACTION = "tests/test_redaction.py::"
UNFORCED = f"{JSONL}test_what_was_written_is_forced_to_the_disk"

DISK = (
    Mutation(
        "fsync of files and folders of a checkpoint",
        "rl/durable.py",
        "                os.fsync(descriptor)\n",
        "                pass\n",
        FLUSHED,
    ),
    Mutation(
        "flush of a checkpoint's files before they get their name",
        "rl/durable.py",
        "disk.close(descriptor, flush=whole)",
        "disk.close(descriptor, flush=False)",
        POWER,
    ),
    Mutation(
        "flush of the staging folder",
        "rl/checkpoint.py",
        "        disk.flush_folder(staging)\n",
        "",
        POWER,
    ),
    Mutation(
        "flush of the folder in which a checkpoint got its name",
        "rl/checkpoint.py",
        "    disk.flush_folder(folder.parent)\n    if replaces",
        "    if replaces",
        POWER,
    ),
    Mutation(
        "rename of a checkpoint that is whole",
        "rl/checkpoint.py",
        "        disk.rename(staging, folder)\n",
        "        shutil.copytree(staging, folder)\n",
        f"{CHECKPOINT}test_a_checkpoint_comes_back_as_it_was_written",
    ),
    Mutation(
        "room for an older checkpoint of the same update until the new one is whole",
        "rl/checkpoint.py",
        "        disk.rename(folder, aside)\n",
        "        shutil.rmtree(folder)\n",
        f"{ORDER}test_a_full_disk_leaves_the_checkpoint_before_and_nothing_else",
    ),
    Mutation(
        "SHA-256 of a checkpoint's files",
        "rl/checkpoint.py",
        "if found.sha256 != sha256 or size not in",
        "if size not in",
        f"{CHECKPOINT}test_one_flipped_bit_is_found",
    ),
    Mutation(
        "setting damaged checkpoints aside",
        "rl/checkpoint_keeping.py",
        '        disk.rename(path, _free_name(directory / f".corrupt-{path.name}"))\n',
        "        pass\n",
        f"{CHECKPOINT}test_damage_is_named_set_aside_and_gone_past",
    ),
    Mutation(
        "fsync of appended rows",
        "experiments/jsonl.py",
        "        os.fsync(self._file.fileno())\n",
        "",
        UNFORCED,
    ),
    Mutation(
        "fsync of a file that replaces another",
        "experiments/jsonl.py",
        "        os.fsync(file.fileno())\n",
        "",
        UNFORCED,
    ),
    Mutation(
        "another name for a file until it is whole",
        "experiments/jsonl.py",
        '    temporary = path.with_name(f".{path.name}.tmp")\n',
        "    temporary = path\n",
        f"{JSONL}test_a_failed_write_leaves_the_old_file",
    ),
    Mutation(
        "repair of a torn last line",
        "experiments/jsonl.py",
        "        drop_torn_line(path)\n",
        "",
        f"{JSONL}test_a_torn_last_line_is_left_out_and_overwritten",
    ),
    Mutation(
        "lock of a run folder",
        "experiments/locks.py",
        "            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) |"
        " fcntl.LOCK_NB)\n",
        "",
        "tests/experiments/test_locks.py::test_a_second_process_is_refused_and_told_who_is_there",
    ),
    Mutation(
        "refusal of other data on resume",
        "experiments/data_lock.py",
        "if before.get(name, now) != now",
        "if False",
        "tests/experiments/test_data_lock.py::test_one_changed_answer_is_another_data_set",
    ),
    Mutation(
        "the commit that ends before a signal is heard",
        "experiments/interruption.py",
        "        if self.requested or not self._attended:\n",
        "        if True:\n",
        "tests/experiments/test_signals_in_commits.py::"
        "test_a_signal_in_a_commit_lets_it_end_and_stops_behind_it",
    ),
)
"""Checkpoints and records."""

NUMBERS = (
    Mutation(
        "look for tensors that are not finite in a checkpoint",
        "rl/checkpoint.py",
        "if tensor.is_floating_point() and not is_finite(tensor):",
        "if False:",
        f"{CHECKPOINT}test_numbers_that_are_not_finite_are_never_committed",
    ),
    Mutation(
        "look for a loss that is not finite",
        "rl/guards.py",
        "        if not math.isfinite(value):\n",
        "        if False:\n",
        f"{GUARDS}test_a_loss_that_is_not_finite_is_left_out_though_its_gradient_is",
    ),
    Mutation(
        "look for a gradient that is not finite",
        "rl/guards.py",
        "    if torch.isfinite(norm):\n",
        "    if True:\n",
        f"{GUARDS}test_a_step_without_a_finite_gradient_is_left_out_whole",
    ),
    Mutation(
        "look at the weights before a checkpoint",
        "rl/guards.py",
        "        if not is_finite(weight):\n",
        "        if False:\n",
        f"{GUARDS}test_weights_that_are_not_finite_are_not_saved",
    ),
    Mutation(
        "clipping by a finite norm alone",
        "rl/optim.py",
        "        if not torch.isfinite(norm):\n            return norm\n",
        "        pass\n",
        f"{GUARDS}test_gradients_are_not_scaled_by_a_norm_that_is_no_number",
    ),
    Mutation(
        "bound on the size of a reward",
        "rl/rollout.py",
        "    if not largest <= max_reward:\n",
        "    if False:\n",
        "tests/rl/test_turns.py::test_a_reward_beyond_all_bounds_is_seen_in_any_turn",
    ),
)
"""Numbers that reach the weights."""

REWARDS = (
    Mutation(
        "masking of episodes without a score",
        "rl/experience.py",
        "        [ok and is_action for is_action in mask]\n",
        "        [is_action for is_action in mask]\n",
        "tests/rl/test_learner.py::test_an_episode_without_a_reward_changes_nothing",
    ),
    Mutation(
        "no total where a part failed",
        "rewards/combine.py",
        "            failed_B[i] |= part.status[i].failed and name not in aside\n",
        "            pass\n",
        f"{COMBINED}test_random_batches_agree_with_a_loop_over_samples",
    ),
    Mutation(
        "failure of scores that are not finite",
        "rewards/scoring.py",
        "    if not math.isfinite(score):\n",
        "    if False:\n",
        CANNOT,
    ),
    Mutation(
        "failure of scores out of range",
        "rewards/scoring.py",
        "    if limits is not None and not limits[0] <= score <= limits[1]:\n",
        "    if False:\n",
        CANNOT,
    ),
    Mutation(
        "repetition one by one when a batch raises",
        "rewards/scoring.py",
        "        if len(completions) == 1:\n",
        "        if True:\n",
        f"{COMBINED}test_a_batch_that_raises_is_repeated_sample_by_sample",
    ),
    Mutation(
        "deadline of a reward in a worker",
        "rewards/isolation.py",
        "        deadline = time.monotonic() + seconds\n",
        "        deadline = time.monotonic() + seconds + 30\n",
        "tests/rewards/test_worker_processes.py::"
        "test_each_failure_has_its_status_and_the_next_question_is_answered",
    ),
    Mutation(
        "death signal of a reward's worker",
        "rewards/worker.py",
        "        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)\n",
        "",
        f"{ISOLATED}test_no_worker_outlives_a_parent_that_is_killed",
    ),
    Mutation(
        "short list of variables for a worker",
        "rewards/isolation.py",
        "env={name: os.environ[name] for name in inherited if name in os.environ},",
        "env=dict(os.environ),",
        f"{ISOLATED}test_a_worker_sees_only_the_environment_that_it_was_given",
    ),
    Mutation(
        "deadline of a pattern",
        "rewards/matching.py",
        "pattern.search(text, timeout=self.timeout)",
        "pattern.search(text, timeout=30)",
        "tests/rewards/test_match_rewards.py::"
        "test_a_pattern_that_explodes_fails_instead_of_hanging",
    ),
    Mutation(
        "redirects of a judge that are not followed",
        "src/instructrec/chat_endpoint.py",
        "follow_redirects=False",
        "follow_redirects=True",
        "tests/rewards/test_llm_judge.py::test_a_redirect_is_not_followed",
    ),
    Mutation(
        "limit of bytes of a judge's answer",
        "src/instructrec/chat_endpoint.py",
        "self._read(response, self.max_bytes)",
        "self._read(response, 2**40)",
        "tests/rewards/test_llm_judge.py::test_an_answer_without_end_is_cut_off",
    ),
)
"""Rewards that fail, hang or lie."""

CODE = (
    Mutation(
        "death signal of a sandbox",
        "rewards/sandbox_child.py",
        '        _must(libc.prctl(1, _SIGKILL, 0, 0, 0), "the signal at the parent\'s death")\n',
        "",
        f"{SANDBOX}test_it_dies_with_the_host_and_its_folder_is_swept_away",
    ),
    Mutation(
        "seccomp",
        "rewards/sandbox_child.py",
        "    _must(libc.prctl(22, 2, ctypes.create_string_buffer(steps + pointer), 0, 0),"
        ' "seccomp")\n',
        "",
        ATTACK,
    ),
    Mutation(
        "Landlock",
        "rewards/sandbox_child.py",
        '    _must(libc.syscall(446, ruleset, 0), "Landlock")\n',
        "",
        ATTACK,
    ),
    Mutation(
        "limits of memory and time of model-written code",
        "rewards/sandbox_child.py",
        "        resource.setrlimit(which, (limit, limit))\n",
        "        pass\n",
        f"{SANDBOX}test_bombs_end_in_time_and_leave_the_host_as_it_was",
    ),
    Mutation(
        "deadline of model-written code",
        "rewards/sandbox_process.py",
        "            if now - self._began - waited > timeout:\n",
        "            if False:\n",
        f"{SANDBOX}test_a_limit_is_the_fault_of_the_code",
    ),
    Mutation(
        "nonce of a sandbox's answers",
        "rewards/sandbox_process.py",
        "        if given != nonce:\n",
        "        if False:\n",
        "tests/rewards/test_code_execution.py::test_forgeries_score_nothing_and_right_programs_all",
    ),
    Mutation(
        "comparison of types",
        "rewards/sandbox_values.py",
        "    if type(value) is not type(expected):\n",
        "    if False:\n",
        "tests/rewards/test_code_execution.py::test_equal_means_the_same_types_at_every_depth",
    ),
)
"""Model-written code."""

TEXT = (
    Mutation(
        "escaping of HTML",
        "experiments/page.py",
        "    return html.escape(shown)\n",
        "    return shown\n",
        "tests/experiments/test_page.py::"
        "test_text_is_escaped_and_what_cannot_be_seen_is_written_out",
    ),
    Mutation(
        "a page's policy against foreign scripts",
        "experiments/page.py",
        "default-src 'none'; ",
        "",
        "tests/experiments/test_page.py::test_a_page_allows_no_script_but_its_own",
    ),
    Mutation(
        "escaping of what would steer a terminal",
        "envs/tasks/rows.py",
        '    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)\n',
        "    return text\n",
        f"{REDACTION}test_messages_neither_steer_the_terminal_nor_show_keys",
    ),
    Mutation(
        "ban of spreadsheets, whose cells run",
        "experiments/jsonl.py",
        "Row = dict[str, Any]\n",
        "Row = dict[str, Any]\n\n\ndef write_csv(file: Any, rows: Any) -> None:\n"
        "    import csv\n\n    csv.writer(file).writerows(rows)\n",
        "tests/test_banned_code.py::"
        "test_nothing_runs_text_pickles_or_remote_code_but_in_known_places",
    ),
    Mutation(
        "escaping of Markdown",
        "experiments/listing.py",
        're.sub(r"([\\\\`<>\\[\\]])", r"\\\\\\1", " ".join(text.split()))',
        '" ".join(text.split())',
        f"{REDACTION}test_a_list_of_markdown_holds_no_links_images_html_or_code",
    ),
    Mutation(
        "redaction of keys in messages",
        "src/instructrec/redaction.py",
        "_USERINFO.sub(HIDDEN, without(known_secrets(), text))",
        "_USERINFO.sub(HIDDEN, text)",
        f"{REDACTION}test_values_of_variables_are_hidden_wherever_they_stand",
    ),
    Mutation(
        "redaction of passwords in addresses",
        "src/instructrec/redaction.py",
        "_USERINFO.sub(HIDDEN, without(known_secrets(), text))",
        "without(known_secrets(), text)",
        f"{REDACTION}test_what_looks_like_a_key_is_hidden",
    ),
    Mutation(
        "redaction of keys in records",
        "experiments/jsonl.py",
        "    return _plain(value, known_secrets())\n",
        "    return _plain(value, ())\n",
        f"{REDACTION}test_values_of_variables_are_hidden_wherever_they_stand",
    ),
    Mutation(
        "refusal of settings that hold a key",
        "src/instructrec/redaction.py",
        "        if is_named_secret(key):\n",
        "        if False:\n",
        f"{REDACTION}test_a_run_with_a_key_in_its_settings_never_begins",
    ),
    Mutation(
        "limit of what YAML stands for",
        "experiments/yaml_files.py",
        "        if open_values[-1][1] > MAX_NODES:\n",
        "        if False:\n",
        "tests/experiments/test_yaml_files.py::test_hostile_settings_are_refused_at_once",
    ),
    Mutation(
        "refusal of numbers that JSON has not",
        "envs/tasks/rows.py",
        '    raise ValueError(f"{name} is not a JSON value")\n',
        "    return float(name)\n",
        "tests/envs/test_data_index.py::test_what_json_would_let_through_is_refused",
    ),
    Mutation(
        "the end of a run that stands still",
        "experiments/hang_watch.py",
        "        self._leave(error.exit_code)\n",
        "",
        "tests/experiments/test_hang_watch.py::test_a_run_that_stands_still_is_shown_and_ended",
    ),
)
"""What others wrote, keys, and runs that stand still."""

MUTATIONS = (*DISK, *NUMBERS, *REWARDS, *CODE, *TEXT)
"""All of them."""
