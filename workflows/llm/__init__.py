"""3D-parallel language-model training."""
