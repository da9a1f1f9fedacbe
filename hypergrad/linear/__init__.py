"""Linear solvers for inverse-Hessian-vector products, one method a file."""
