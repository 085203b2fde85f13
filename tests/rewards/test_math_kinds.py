"""Answers as people and models write them, by the kind of what graders get wrong: right values, and neighbours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rewards import BadReference
from rewards.countdown import CountdownVerifier
from rewards.format import R1FormatVerifier
from rewards.math_answers import MathVerifier

DATA = Path(__file__).resolve().parents[1] / "data"
ROWS = [json.loads(line) for line in (DATA / "math_graders.jsonl").read_text("utf-8").splitlines()]
VERIFIER = MathVerifier()
UNDONE = "equal, but not worked out as far as the reference (form: evaluated)"
OTHERWISE = {
    (r"\sqrt{i^2+5}", "2"): UNDONE,
    (r"(1+i)^2(1-i)^2 \cdot \left(i^2\right)^{3}", "-4"): UNDONE,
    ("((1+i)(1-i))^3", "8"): UNDONE,
    (r"\left|\begin{array}{cc}1&2\\3&4\end{array}\right|", "-2"): UNDONE,
    (r"\sum_{k=1}^n k", r"\frac{n(n+1)}{2}"): UNDONE,
    (r"\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}^{-1}", r"\begin{bmatrix}-2&1\\3/2&-1/2\end{bmatrix}"): UNDONE,
    (
        r"\begin{pmatrix}0.290243\\0.196008\end{pmatrix}",
        r"\begin{pmatrix}0.29\\0.196\end{pmatrix}",
    ): "between two decimals nothing is rounded",
}
"""Rows whose wanted score the policy does not give, with the policy; at most 5 % of the rows."""
VERIFIERS = {"MathVerifier": MathVerifier, "CountdownVerifier": CountdownVerifier, "R1FormatVerifier": R1FormatVerifier}


@pytest.mark.parametrize("row", ROWS, ids=[f"{at}-{row['kind'][:40]}" for at, row in enumerate(ROWS)])
def test_rows_of_the_collection(row: dict[str, Any]) -> None:
    verifier: Any = VERIFIERS[row["verifier"].partition(":")[2].partition(".")[0]](**row["args"])
    verifier.check_reference(row["reference"])
    if row["expected_score"] == "accepted":
        return
    if "answer" in row:
        verdict = verifier.grade_answer(row["answer"], row["reference"])
    else:
        verdict = verifier.grade(row["completion"], row["reference"])
    policy = OTHERWISE.get((row.get("answer", ""), str(row["reference"])))
    assert (verdict.score == row["expected_score"]) is (policy is None), (verdict, policy)


def test_the_policy_says_otherwise_of_few_rows() -> None:
    known = {(row.get("answer", ""), str(row["reference"])) for row in ROWS}
    assert set(OTHERWISE) <= known
    assert len(OTHERWISE) <= 0.05 * len(ROWS)


# answer, reference, score
ANSWERS: list[tuple[str, str, int]] = [
    ("3x+5=20", "x=5", 0),
    ("2x+1>7", "x>3", 0),
    ("ab+5b+2a+10", "(a+5)(b+2)", 0),
    ("m+n=42", "42", 1),
    ("f(2)=7", "7", 1),
    (r"P(X=2)=\frac38", r"\frac38", 1),
    ("a_5=7", "7", 1),
    ("P=7", "7", 1),
    ("[ABC]=7", "7", 1),
    (r"\gcd(a,b)=7", "7", 1),
    ("75%", "75", 1),
    ("0.75", "75", 0),
    (r"1\%", "100", 0),
    (r"500\%", "5", 0),
    ("1101", "1101_2", 1),
    ("13", "1101_2", 0),
    (r"(0,36)\setminus\{9\}", r"(0,9)\cup(9,36)", 1),
    (r"x<0 \text{ or } x>1", r"(-\infty,0)\cup(1,\infty)", 1),
    (r"]-\infty,2]", r"(-\infty,2]", 1),
    ("[0,1[", "[0,1)", 1),
    (r"(0,1)\bigcup(2,3)", r"(0,1)\cup(2,3)", 1),
    (r"\mathbb{R}\setminus\{1,2\}", r"(-\infty,1)\cup(1,2)\cup(2,\infty)", 1),
    (r"\{x \mid x\ne 1\}", r"(-\infty,1)\cup(1,\infty)", 1),
    (r"[0,5]\setminus\{2\}", r"[0,2)\cup(2,5]", 1),
    (r"x \geq 0, x \neq 1", r"[0,1)\cup(1,\infty)", 1),
    (r"5\text{ nm}", r"5\text{ m}", 0),
    (r"5\text{ kW}", r"5\text{ W}", 0),
    (r"5\text{ mA}", r"5\text{ A}", 0),
    (r"5\text{ atm}", r"5\text{ Pa}", 0),
    (r"5\text{ euros}", r"5\text{ dollars}", 0),
    ("€5", r"\$5", 0),
    ("5 kN", "5 N", 0),
    ("5 GB", "5 MB", 0),
    (r"5\ \mathrm{kN}", r"5\ \mathrm{N}", 0),
    (r"5\text{ kilonewtons}", r"5\text{ newtons}", 0),
    ("9.8", r"9.8\ \mathrm{m/s^2}", 1),
    (r"9.8\text{ m/s}^2", r"9.8\ \mathrm{m/s^2}", 1),
    (r"9.8\text{ m/s}", r"9.8\ \mathrm{m/s^2}", 0),
    (r"3\ \mathrm{kg\cdot m/s}", r"3\ \mathrm{kg\,m/s}", 1),
    (r"3\times10^8\ \mathrm{m/s}", r"3 \times 10^8 \mathrm{~m} / \mathrm{s}", 1),
    (r"\mathbf{-5}", "-5", 1),
    (r"\text{-3}", "-3", 1),
    (r"\textbf{-12}", "-12", 1),
    (r"{90^\circ}", r"90^\circ", 1),
    (r"\boxed{90^\circ}", "90", 1),
    (r"\begin{cases} x=3 \\ y=5 \end{cases}", "(3,5)", 1),
    (r"\begin{aligned} x&=3 \\ y&=5 \end{aligned}", "x=3, y=5", 1),
    (r"\begin{cases} -x & x<0 \\ x & x\ge 0\end{cases}", r"\begin{cases} x & x\ge 0 \\ -x & x<0 \end{cases}", 1),
    (
        r"f(x)=\begin{cases} x^2, & \text{if } x>0 \\ 0, & \text{otherwise}\end{cases}",
        r"f(x)=\begin{cases} 0, & x\le 0 \\ x^2, & x>0\end{cases}",
        1,
    ),
    (r"\begin{cases} x & x \ge 1 \\ -x & x < 1 \end{cases}", "|x|", 0),
    ("x=3\ny=5", "x=3,y=5", 1),
    (r"x=3 \text{ and } y=5", "x=3,y=5", 1),
    (r"3 \quad 5", "3,5", 1),
    (r"3 \\ 5", "3,5", 1),
    ("x=3; y=5", "x=3,y=5", 1),
    ("0{,}5", "0.5", 1),
    ("3.14", "3{,}14", 1),
    ("1{,}5", "1.5", 1),
    ("12{,}25", "12.25", 1),
    (r"{3 \over 4}", r"\frac34", 1),
    (r"{10\choose 3}", r"\binom{10}{3}", 1),
    (r"\mathrm{C}_{10}^3", r"\binom{10}{3}", 1),
    ("C_{10}^3", r"\binom{10}{3}", 1),
    (r"\lbrace 1,2 \rbrace", r"\{1,2\}", 1),
    (r"\bm{5}", "5", 1),
    (r"\arctg 2", r"\arctan 2", 1),
    (r"\operatorname{cis}\frac{\pi}{3}", r"\cos\frac{\pi}{3}+i\sin\frac{\pi}{3}", 1),
    (r"\mathop{\rm lcm}(2,3)", "6", 0),
    (r"\tfrac12", r"\frac12", 1),
    (r"\operatorname{tg} x", r"\tan x", 1),
    (r"\displaystyle\frac12", r"\frac12", 1),
    (r"\mathrm{e}^2", "e^2", 1),
    ("{C}", "C", 1),
    (r"\boxed{C}", "C", 1),
    ("(C)", "C", 1),
    (r"\text{A and C}", "A, C", 1),
    ("CA", "A, C", 1),
    ("ABD", "ACD", 0),
    ("A, C", "ACD", 0),
    ("A", "A, C", 0),
    (r"\mathbf{(C)}", "C", 1),
    (r"\text{(B) or (C)}", "B", 0),
    (r"\text{not B}", "B", 0),
    ("B or C", "B", 0),
    (r"B \text{ is wrong}", "B", 0),
    (r"\text{(B) } 12", "B", 1),
    (r"\textbf{(B)}\ \frac{1}{2}", "B", 1),
    ("B. not enough information", "B", 1),
    ("Player", "Player A", 0),
    ("Vitamin", "Vitamin A", 0),
    ("Player A", "Player A", 1),
    ("a triangle", "triangle", 1),
    ("Team A", "Team B", 0),
    (r"\frac\pi4+k\pi, k\in\mathbb Z", r"x=\frac\pi4+n\pi", 1),
    (r"x=\frac{\pi}{4}+k\pi\ (k\in\mathbb{Z})", r"\frac{\pi}{4}+n\pi, n\in\mathbb{Z}", 1),
    (r"n\equiv1\pmod6", "n=6k+1", 1),
    ("n=6m+1", "n=6k+1", 1),
    ("6k+1", r"n \equiv 1 \pmod{6}", 1),
    ("n=6k+5", "n=6k+1", 0),
    (r"x=\frac\pi4+2k\pi, k\in\mathbb{Z}", r"x=\frac\pi4+n\pi", 0),
    (r"\{x | x=k\pi, k\in\mathbb{Z}\}", r"x=n\pi, n \in \mathbb{Z}", 1),
    (r"x = -\frac{3\pi}{4}+n\pi, n\in\mathbb{Z}", r"x=\frac\pi4+k\pi, k\in\mathbb{Z}", 1),
    (r"\frac12\sin^2x+C", r"-\frac12\cos^2x+C", 1),
    ("x^2+c", "x^2+C", 1),
    ("x^2+K", "x^2+C", 1),
    ("x^2", "x^2+C", 0),
    ("x^3+C", "x^2+C", 0),
    ("y=c_1e^x+c_2e^{-x}", "y=C_1e^x+C_2e^{-x}", 1),
    (r"\ln|2x|+C", r"\ln|x|+C", 1),
    ("Ce^x", "ce^x", 1),
    ("y=x^2+c", "y = x^2+C", 1),
    (r"\frac{1}{2}x^2 + C", r"\frac{x^2}{2} + 5 + C", 1),
    (r"\sum_{k=0}^{n} 2^k", r"\sum_{i=0}^{n} 2^i", 1),
    (r"\sum_{j=1}^{n} j^2", r"\sum_{i=1}^{n} i^2", 1),
    (r"\mathbf i+2\mathbf j", "(1,2)", 1),
    (r"\mathbf{i}+2\mathbf{j}-\mathbf{k}", "(1,2,-1)", 1),
    ("[[1,2],[3,4]]", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", 1),
    (r"\begin{pmatrix}1&2&3\end{pmatrix}^T", r"\begin{pmatrix}1\\2\\3\end{pmatrix}", 1),
    ("(1,2,3)^T", r"\begin{pmatrix}1\\2\\3\end{pmatrix}", 1),
    (r"\langle 1,2,3\rangle", "(1,2,3)", 1),
    (r"\hat{i}+2\hat{j}", r"\langle 1,2\rangle", 1),
    ("[1,2,3]", r"\begin{pmatrix}1\\2\\3\end{pmatrix}", 1),
    (r"\text{7 ways}", "7", 1),
    (r"2\text{ to }3", "2:3", 1),
    ("DNE", r"\text{does not exist}", 1),
    ("seven", "7", 1),
    (r"\text{twelve}", "12", 1),
    (r"\text{five}", "6", 0),
    ("2:3", r"2\text{ to }3", 1),
    (r"\text{undefined}", "DNE", 1),
    (r"\text{1/2}", r"\frac12", 1),
    (r"\text{3.5}", "3.5", 1),
    ("twenty-one", "21", 1),
    (r"180^\circ-2\alpha", r"180-2\alpha", 1),
    (r"90-\theta", r"90^\circ-\theta", 1),
    (r"180^\circ-\alpha", r"180-2\alpha", 0),
    (r"\ln x", r"\ln|x|", 0),
    (r"\ln x + C", r"\ln|x| + C", 0),
    (r"\{(a,b):ab\le e^3\}", r"\{(a,b)\mid ab\le e^3\}", 1),
    (r"\{x : x>2\}", r"\{x \mid x>2\}", 1),
    (r"\{(x,y) \mid y=2x\}", r"\{(x,y): y=2x\}", 1),
    ("2∶3", "2:3", 1),
    ("⅓", r"\frac13", 1),
    ("∛2", r"\sqrt[3]{2}", 1),
    ("x₁=1", "1", 1),
    ("½", r"\frac12", 1),
    ("5²", "25", 0),
    ("x²", "x^2", 1),
    ("√2", r"\sqrt2", 1),
    ("π/2", r"\frac{\pi}{2}", 1),
    ("≥5", r"\geq 5", 1),
    ("2⁄3", r"\frac23", 1),
    ("90˚", "90", 1),
    (r"\frac{100}{3}", "33.3", 1),
    (r"\approx 6.28", "6.28", 1),
    (r"3.14\ldots", "3.14", 1),
    (r"0.666\ldots", r"\frac23", 1),
    ("6.28", r"\approx 6.28", 1),
    ("1.414...", r"\sqrt{2}", 0),
    ("0.333...", r"\frac13", 1),
    ("5;10", "$5$;$10$", 1),
    ("10; 5", "$5$; $10$", 0),
    (r"f(x)=x \text{ or } f(x)=-x", "g(x)=x, g(x)=-x", 0),
    (r"1\text{ hour }30\text{ minutes}", r"1\text{ hour and }30\text{ minutes}", 1),
    (r"5\text{ feet }3\text{ inches}", r"5\text{ feet and }3\text{ inches}", 1),
    ("9^{9^9}+1", "9^{9^9}", 0),
    ("10^{100}+1", "10^{100}", 0),
    ("no solution", r"\emptyset", 1),
    ("none", "no real solutions", 1),
    ("None", "No solution", 1),
    ("equilateral triangle", "equilateral", 1),
    ("infinitely many", "infinitely many solutions", 1),
    ("parallel lines", "parallel", 1),
    ("All real numbers", r"\mathbb{R}", 1),
    (r"\text{right triangle}", "right", 1),
    ("0.5x+3", r"\frac12x+3", 1),
    ("(2k)!!", "2^k k!", 1),
    (r"\frac{(2n)!}{2^n n!}", "(2n-1)!!", 1),
    (r"7\text{ (because } 3+4=7)", "7", 1),
    ("12 (since 3*4=12)", "12", 1),
    (r"\frac12 \text{ (by symmetry)}", r"\frac12", 1),
    (r"\frac{3}{20}", "0.15", 0),
    (r"\frac{1}{2}", "0.5", 0),
    ("4/3+1", r"\frac73", 0),
    (r"x=\pm 2", "x=2, x=-2", 1),
    ("y=3x-1", "y = 3x - 1", 1),
    (r"x\in\{1,2\}", "1,2", 1),
    (r"3\sqrt{2}\text{ cm}", r"3\sqrt2", 1),
    ("$5.00", "5", 1),
    ("5 dollars", r"\$5", 1),
    ("1,000", "1000", 1),
]

# completion, reference, score, extraction
COMPLETIONS: list[tuple[str, str, int, str]] = [
    (r"$\boxed{B}$. Choice C: this is incorrect because x>0.", "B", 1, "boxed"),
    (r"$\boxed{\frac12}$. So the final answer is $0.5$.", r"\frac12", 1, "boxed"),
    (r"\boxed{42}. (I used the \boxed{} format.)", "42", 1, "boxed"),
    (r"\boxed{12}\pi$", "12", 0, "boxed"),
    (r"$\boxed{12}\pi$", "12", 0, "boxed"),
    (r"$\boxed{12}\pi$", r"12\pi", 1, "boxed"),
    (r"$x \neq \boxed{12}$", "12", 0, "boxed"),
    (r"x \neq \boxed{12}", "12", 0, "boxed"),
    (r"\boxed{12} or 13", "12", 0, "boxed"),
    (r"$\boxed{12}$ or $13$", "12", 0, "boxed"),
    (r"\boxed{12}. No wait, it is 13.", "12", 0, "boxed"),
    (r"$-\boxed{5}$", "-5", 1, "boxed"),
    (r"$x > \boxed{5}$", "5", 0, "boxed"),
    (r"$x>\boxed{5}$", "x>5", 1, "boxed"),
    (r"It is not \boxed{12}.", "12", 0, "boxed"),
    (r"The answer isn't $\boxed{12}$", "12", 0, "boxed"),
    (r"The answer is \boxed{12}, maybe 13.", "12", 0, "boxed"),
    (r"$2\boxed{5}$", "5", 0, "boxed"),
    (r"$\boxed{5}^2$", "5", 0, "boxed"),
    (r"$\boxed{5}!$", "5", 0, "boxed"),
    (r"The answer is $\boxed{5}$!", "5", 1, "boxed"),
    (r"- $\boxed{5}$", "5", 1, "boxed"),
    (r"- \boxed{5}", "5", 1, "boxed"),
    (r"$\boxed{12}\text{ cm}$", "12", 1, "boxed"),
    (r"\boxed{12} \text{ thousand}", "12", 0, "boxed"),
    (r"Answer: $\boxed{12}$ thousand dollars", "12000", 1, "boxed"),
    (r"$3+4=\boxed{7}$", "7", 1, "boxed"),
    (r"$\boxed{7}$ is the answer.", "7", 1, "boxed"),
    (r"So $x=\boxed{7}$, which is what we wanted.", "7", 1, "boxed"),
    (r"$\boxed{12}$. Actually, the answer should be 13.", "12", 0, "boxed"),
    (r"$\boxed{12}$. Wait, that is wrong.", "12", 0, "boxed"),
    (r"$\boxed{12}$. Hmm, I made a mistake.", "12", 0, "boxed"),
    (r"$\boxed{12}$. Scratch that.", "12", 0, "boxed"),
    (r"(a) \boxed{2} (b) \boxed{3}", "2, 3", 1, "boxed"),
    (r"\boxed{\sqrt2}, numerically \boxed{\approx 1.41}", r"\sqrt2", 1, "boxed"),
    ("Part (a): \\boxed{2}\n\nPart (b): \\boxed{3}", "2,3", 1, "boxed"),
    ("1. $\\boxed{2}$\n2. $\\boxed{3}$", "2, 3", 1, "boxed"),
    ("(a) \\boxed{2}\n(b) \\boxed{3}", "3", 1, "boxed"),
    ("#### 42\n\nThis is the answer", "42", 1, "hash"),
    ("#### 42 apples", "42", 1, "hash"),
    ("####\n42", "42", 1, "hash"),
    ("#### 42\n#### Explanation\nbecause", "42", 1, "hash"),
    ("#### 42 (the total)", "42", 1, "hash"),
    ("#### $42", "42", 1, "hash"),
    ("It is 41 or 42.", "42", 0, "lenient"),
    ("It is not 42.", "42", 0, "lenient"),
    ("The answer is not 42 but 43.", "43", 1, "lenient"),
    ("Réponse : 3,5", "3.5", 1, "lenient"),
    ("The answer is not 41, it is 42.", "42", 1, "lenient"),
    ("It isn't 42", "42", 0, "lenient"),
    ("Either 41 or 42", "42", 0, "lenient"),
    ("<answer>42</answer> The <answer> tag is used.", "42", 1, "answer_tag"),
    ("<answer>41</answer> no <answer>42", "41", 0, "answer_tag"),
    ("<answer>42</answer> I used <answer></answer> tags.", "42", 1, "answer_tag"),
    (r"$\boxed{A}$. B is wrong, C is wrong.", "A", 1, "boxed"),
    ("The answer is \\boxed{5}.\n\nLet me verify: 2+3=5. This is correct.", "5", 1, "boxed"),
    (r"The answer is \boxed{5}. It is wrong to say 6.", "5", 1, "boxed"),
    (r"\boxed{42} is my final answer. I hope this is not incorrect.", "42", 1, "boxed"),
    (r"$\boxed{12}$. Sorry, I meant 13.", "12", 0, "boxed"),
    (r"$\boxed{12}$, no, $13$.", "12", 0, "boxed"),
    (r"Thus $\frac{\boxed{3}}{4}$.", "3", 0, "boxed"),
    (r"\boxed{3}/4", "3", 0, "boxed"),
]
REFERENCES = [
    r"\text{(A)}",
    r"\textbf{(A)}",
    "A)",
    "(A)",
    "A",
    r"\text{A}",
    r"$\log(0.01)=-2$",
    r"$\left(\begin{array}{l}9\\2\end{array}\right)=36$",
    r"$2000\sqrt{3}=3464.1$",
    r"$y=\frac{1}{x} \quad y=-x$",
    r"$A^{-1}=\begin{pmatrix}1&2\\3&4\end{pmatrix}$",
    r"$\left|\begin{array}{ll}1&2\\3&4\end{array}\right|=-2$",
    r"\log 100 = 2",
    r"A^{-1}=\frac{1}{2}\begin{pmatrix}1&2\\3&4\end{pmatrix}",
    r"$x \approx 3.46$",
    r"$\log_{2}(8)=3$",
    r"$1.5 \times 10^{4}=15000$",
    r"$\sqrt{2} \approx 1.414$",
    r"$\frac{7}{3}=2.33$",
]


@pytest.mark.parametrize(("answer", "reference", "score"), ANSWERS)
def test_answers(answer: str, reference: str, score: int) -> None:
    assert VERIFIER.grade_answer(answer, reference).score == score


@pytest.mark.parametrize(("completion", "reference", "score", "extract"), COMPLETIONS)
def test_what_stands_around_the_answer(completion: str, reference: str, score: int, extract: str) -> None:
    assert MathVerifier(extract=extract).grade(completion, reference).score == score


@pytest.mark.parametrize("reference", REFERENCES)
def test_labels_as_data_sets_write_them_load(reference: str) -> None:
    VERIFIER.check_reference(reference)


def test_contradictions_do_not_load() -> None:
    for reference in ("3=5", "x=5=6", r"2+2=5"):
        with pytest.raises(BadReference):
            VERIFIER.check_reference(reference)


def test_signs_may_be_required() -> None:
    strict = MathVerifier(percent_sign="required", base_subscript="required")
    for answer, reference in ((r"25\%", "25"), ("52", "52_8")):
        assert VERIFIER.grade_answer(answer, reference).score == 1.0
        assert strict.grade_answer(answer, reference).score == 0.0
    with pytest.raises(ValueError, match="percent_sign: 'never' is none of optional, required"):
        MathVerifier(percent_sign="never")


@pytest.mark.parametrize(
    "expression",
    [
        r"\(50 - 7 \cdot 3\)", "`50 - 7*3`", r"$50 - 7 \times 3 = 29$", r"\[ 50 - (7 \cdot 3) \]", "**50 - 7*3**",
        r"\boxed{50 - 7 \cdot 3}", r"\left(50 - 7 \cdot 3\right)",
    ],
)  # fmt: skip
def test_countdown_reads_the_marks_of_instruct_models(expression: str) -> None:
    reference = {"numbers": [3, 7, 50], "target": 29}
    assert CountdownVerifier().grade(f"<answer>{expression}</answer>", reference).score == 1.0


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ("<think>a</think><answer>b</answer></s>", 1),
        ("<think>use <answer> and </answer></think>\n<answer>b</answer>", 1),
        ("<think>a</think>\n<answer>b</answer><|endoftext|>\n", 1),
        ("<think>a</think><answer>b</answer>junk", 0),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0),
        ("<think>a<think>b</think><answer>c</answer>", 0),
    ],
)
def test_format_with_tags_named_in_the_thought(completion: str, score: int) -> None:
    assert R1FormatVerifier().grade(completion, "b").score == score
