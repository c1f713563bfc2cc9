"""Which quick tests speak for which module, the sharpest first: a mutant is dead as soon as one of them fails."""

FLOPS = [
  "tests/test_flops.py::test_training_costs_6n_for_a_transformer_and_30n_for_two_steps_of_ebt",
  "tests/test_flops.py::test_the_paper_counts_20n_for_a_step_and_12n_for_one_that_is_not_learnt",
  "tests/test_flops.py::test_what_a_model_says_is_what_a_trace_of_it_counts",
  "tests/test_flops.py::test_a_written_token_is_counted_as_traced[{'kind': 'transformer'}]",
  "tests/test_flops.py::test_a_written_token_is_counted_as_traced[{}]",
]
TABLE = {
  "ebt_jax/losses.py": ["tests/test_losses.py"],
  "ebt_jax/streams.py": ["tests/test_streams.py"],
  "ebt_jax/scaling.py": ["tests/test_scaling.py"],
  "ebt_jax/use/sampling.py": ["tests/use/test_sampling.py"],
  "ebt_jax/evaluation/evaluator.py": ["tests/evaluation/test_evaluator.py"],
  "ebt_jax/use/generate.py": [
    f"tests/use/test_generate.py::test_{name}"
    for name in (
      "a_thought_that_diverged_ends_its_row_and_no_other",
      "a_prompt_without_tokens_is_refused",
      "draws_follow_the_seed",
      "a_row_that_ended_stops_and_the_others_go_on",
      "greedy_text_is_what_whole_sequences_say_and_the_window_slides[{'kind': 'transformer'}]",
      "text_does_not_depend_on_how_many_tokens_a_call_generates[{'kind': 'transformer'}]",
      "a_row_is_the_same_whatever_stands_beside_it[zeros]",
      "the_cache_is_written_in_place",
    )
  ],
  "ebt_jax/training/loop.py": [
    "tests/training/test_loop.py",
    "tests/test_main.py::test_the_numbers_of_training_are_those_after_the_last_thinking_step",
    "tests/test_main.py::test_training_leaves_what_it_says",
    "tests/test_main.py::test_a_finished_run_says_so",
    "tests/test_resume.py",
  ],
  "ebt_jax/training/step.py": ["tests/training/test_step.py"],
  "ebt_jax/thinking/replay.py": ["tests/thinking/test_replay.py"],
  "ebt_jax/thinking/descent.py": ["tests/thinking/test_descent.py", "tests/thinking/test_think.py"],
  "ebt_jax/thinking/verify.py": ["tests/thinking/test_verify.py"],
  "ebt_jax/thinking/spaces.py": ["tests/thinking/test_spaces.py", "tests/thinking/test_think.py"],
  "ebt_jax/thinking/think.py": ["tests/thinking/test_think.py", "tests/thinking/test_verify.py"],
  "ebt_jax/thinking/loss.py": ["tests/thinking/test_thinking_loss.py"],
  "ebt_jax/tasks/text.py": [
    "tests/evaluation/test_evaluator.py::test_the_mean_is_exact_whatever_the_batch",
    "tests/tasks/test_text.py::test_candidates_that_an_option_needs_whole_are_announced_and_their_chunks_refused",
    "tests/tasks/test_text.py::test_a_start_has_the_scale_that_is_asked_for",
    "tests/tasks/test_text.py::test_the_space_of_training_does_not_depend_on_the_mesh_around_the_caller",
    "tests/tasks/test_text.py::test_the_loss_of_text_is_that_of_a_plain_loop",
    "tests/test_run_data.py",
  ],
  "ebt_jax/tasks/direct.py": [
    "tests/tasks/test_ebt.py",
    *FLOPS,
    "tests/tasks/test_text.py::test_chunks_are_what_is_held[transformer]",
    "tests/tasks/test_text.py::test_chunks_of_positions_change_nothing[transformer]",
  ],
  "ebt_jax/tasks/ebt.py": [
    "tests/tasks/test_ebt.py",
    *FLOPS,
    "tests/models/test_residual.py::test_the_first_candidate_starts_at_what_the_context_predicts_and_others_around_it",
    "tests/tasks/test_text.py::test_the_loss_of_text_is_that_of_a_plain_loop",
    "tests/tasks/test_text.py::test_candidates_that_an_option_needs_whole_are_announced_and_their_chunks_refused",
    "tests/test_flops.py::test_the_count_is_that_of_the_traced_gradient",
  ],
  "experiments/scaling/analysis.py": ["tests/experiments/test_scaling_numbers.py"],
  "experiments/thinking/verifier.py": [
    "tests/experiments/test_thinking_numbers.py::test_verifier",
    "tests/experiments/test_verifier.py",
  ],
  "experiments/thinking/common.py": [
    "tests/experiments/test_thinking_studies.py",
    "tests/experiments/test_thinking_numbers.py",
  ],
}
