// group.glsl: sums and maxima over a workgroup, for any subgroup size and in a fixed order.
// Every invocation must call them (uniform control flow) and gets the result. Include after the
// layout of the local size.
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require

// Which invocation of its subgroup this one is, and of how many. Counted: a subgroup need not be full
// (Intel's compilers may run 8 or 16 invocations in one whose gl_SubgroupSize reads 32).
uvec2 subgroup_place() { return uvec2(subgroupExclusiveAdd(1u), subgroupAdd(1u)); }

shared float group_partial[256]; // one per subgroup: 1,024 invocations of subgroups of 4

float group_sum(float x) {
    float s = subgroupAdd(x);
    barrier(); // the values of an earlier call have been read
    if (subgroupElect()) group_partial[gl_SubgroupID] = s;
    barrier();
    float total = 0.0;
    for (uint i = 0; i < gl_NumSubgroups; i++) total += group_partial[i];
    return total;
}

float group_max(float x) {
    float s = subgroupMax(x);
    barrier();
    if (subgroupElect()) group_partial[gl_SubgroupID] = s;
    barrier();
    float best = group_partial[0];
    for (uint i = 1; i < gl_NumSubgroups; i++) best = max(best, group_partial[i]);
    return best;
}
