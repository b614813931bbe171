"""The paper's figures, one module each; every figure reads tables only, never tensors."""
