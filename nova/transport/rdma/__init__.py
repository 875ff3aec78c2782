"""Streams over RDMA: reliable-connected queue pairs, found and chosen at run time; never needed to install nova."""
