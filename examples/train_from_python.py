"""Teach the quickstart's model additions with a reward function of one's own."""

import re

import rlvr


def right_sum(completion: str, reference: str) -> bool:
    """True where the text between the answer tags is the sum."""
    found = re.search(r"<answer>(.*?)</answer>", completion)
    return found is not None and found[1].strip() == reference


rows = [{"problem": f"What is {a}+{b}?", "answer": str(a + b)} for a in range(10, 40) for b in range(50, 60)]
recipe = rlvr.load_recipe("quickstart", {"name": "from-python", "run.steps": 3})
result = rlvr.train(recipe, problems=rows[:280], rewards=[right_sum], eval_problems=rows[280:])
print(f"solved {result.evaluation['eval/eval/pass@1']:.0%}; the model lies in {result.model_path}")
