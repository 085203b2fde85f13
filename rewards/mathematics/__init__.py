"""Reading and comparing mathematical answers: normalise -> parse -> interpret -> compare, without sympy."""
